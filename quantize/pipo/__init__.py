"""Training of pair models (PIPO, arXiv 2605.27255). Lossy: they write other text than their originals."""
