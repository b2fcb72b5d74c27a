"""Runs in the kernel: from options to a running agent, and the handle on it."""
