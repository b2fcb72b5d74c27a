"""Runs in a rank.

A rank is a fresh interpreter, or a fork of one, that the agent started. It runs what was launched once, and leaves.
"""
