"""Read GGUF models with transformers: configuration and weights, whole or not at all."""
