"""Checks that sampled texts follow the law."""
