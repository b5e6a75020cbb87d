"""Processes that tests start, and what they share."""
