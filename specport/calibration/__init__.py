"""Measurement of what models cost on this machine."""
