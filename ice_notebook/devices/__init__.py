"""Which devices exist, are meant, are in use."""
