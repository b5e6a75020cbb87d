"""Training text for drafts, written by their target."""
