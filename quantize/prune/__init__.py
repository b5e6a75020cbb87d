"""Choosing and removing layers and channels of a draft."""
