"""Tiny random models, which real runtimes load."""
