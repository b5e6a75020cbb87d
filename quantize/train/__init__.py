"""Training of drafts, and of targets for early exits."""
