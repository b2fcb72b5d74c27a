"""What processes say to each other. The only folder that all of them import."""
