"""What is launched: a function, a cell's body, a script."""
