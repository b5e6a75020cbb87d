"""Downloads: from the Hugging Face hub, out of Python packages, and of the default model."""
