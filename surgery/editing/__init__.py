"""The one place where networks are changed: edits carried out, layers narrowed, and the proof that rewriting alone changes nothing."""
