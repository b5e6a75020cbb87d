"""Probabilities that plans rest on: how confidence becomes acceptance, and what drafting on is worth."""
