"""Which of a recipe's sites are converted: those that a user names, or those that cost least."""
