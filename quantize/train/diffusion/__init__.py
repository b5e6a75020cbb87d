"""Training of a block-diffusion model from an autoregressive one (BD3-LM, arXiv 2503.09573; SDAR)."""
