"""One folder a recipe: its options, its layers, where it goes, how it keeps what was learned."""
