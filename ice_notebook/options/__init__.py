"""What may be written, and what it means."""
