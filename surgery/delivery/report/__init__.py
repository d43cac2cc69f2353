"""The report: one page that shows what was done to networks, and what came of it."""
