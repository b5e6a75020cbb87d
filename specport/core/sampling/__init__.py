"""Choice of the next token: sampling parameters, logits processors, the sampler, top-k."""
