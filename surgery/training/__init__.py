"""Data and evaluation; fine-tuning joins them here."""
