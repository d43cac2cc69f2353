"""The engine: reads, understands, plans, edits, checks, writes. It knows no recipe by name."""
