"""A network's papers and its file: what its record says, whether it still is that, how it is written whole, read again, undone."""
