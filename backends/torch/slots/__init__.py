"""The model with slots of fixed shape: batches, cache, steps, chains, early exit."""
