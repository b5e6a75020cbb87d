"""LayerSkip: training of a model to exit early (arXiv 2404.16710)."""
