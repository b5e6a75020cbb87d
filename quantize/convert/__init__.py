"""Conversion between formats, and compression of weights."""
