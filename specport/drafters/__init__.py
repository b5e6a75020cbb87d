"""Drafters propose tokens. They know token ids, no text and no runtime."""
