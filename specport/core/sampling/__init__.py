"""Sampling from the target's distribution, and the largest logits of a row."""
