"""Drafters that retrieve tokens from text: the prompt, earlier texts, the user's files."""
