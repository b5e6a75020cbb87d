"""Read and write GGUF files: header and tensors."""
