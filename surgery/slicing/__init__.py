"""Removing what masks have let go of: which channels go together, which are exactly zero, the edits, and the proof that nothing changed."""
