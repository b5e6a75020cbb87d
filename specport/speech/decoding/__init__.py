"""Decoding of long audio: windows, temperature fallback, segments, times of words."""
