"""Images on disk: where they lie, what class each has, how they become a network's input, and how training varies them."""
