"""Drafts for speech models: a Whisper's decoder is cut, and distilled on what the whole model hears."""
