"""A module's forward as a graph: traced with addresses, rewritten, put back under the name it had."""
