"""Pair-in, pair-out decoding (PIPO, arXiv 2605.27255). Lossy: another text than the unmodified model's."""
