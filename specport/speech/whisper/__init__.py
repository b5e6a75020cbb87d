"""Whisper: its tokens, its rules of timestamps, and models with drafts."""
