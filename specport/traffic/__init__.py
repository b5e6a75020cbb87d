"""The user's own texts with a target: recorded where that is on, kept here, for drafts to learn from."""
