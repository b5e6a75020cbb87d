"""Drafts looked up in text: the prompt, earlier texts, the user's files."""
