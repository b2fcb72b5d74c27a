"""A run as facts on disk and as words. It starts nothing."""
