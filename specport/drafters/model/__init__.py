"""Drafts of a draft model: its cache, its trees, its head."""
