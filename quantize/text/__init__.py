"""Text that the target writes, for a draft to learn from."""
