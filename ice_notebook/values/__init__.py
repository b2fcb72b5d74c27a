"""A Python value as bytes, and why one cannot be."""
