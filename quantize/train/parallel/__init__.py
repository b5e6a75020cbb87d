"""Training of drafts that propose several tokens in one pass (PARD, arXiv 2504.18583)."""
