"""In a rank: a fresh interpreter that the agent started, which runs the user's function once and leaves."""
