"""Ways to decode: one round of the engine over the running sequences."""
