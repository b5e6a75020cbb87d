"""Acceptance rules: which drafted tokens the target keeps."""
