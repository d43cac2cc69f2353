"""From a file, or an architecture's name, to tensors and the network they belong to."""
