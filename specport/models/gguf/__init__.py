"""Reading GGUF files: header, tensors, tokenizer."""
