"""What user code on a rank may call. It imports nothing of ours but errors."""
