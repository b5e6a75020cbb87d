"""Whisper on slots: the encoder, and a decoder that attends to the encoder's output of each slot."""
