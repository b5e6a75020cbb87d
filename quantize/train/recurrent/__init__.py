"""Training of recurrent draft heads on hidden states of their target (Hydra, arXiv 2402.05109)."""
