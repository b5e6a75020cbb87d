"""Ways to propose tokens, one file each. Drafters know token ids, never text, and no runtime."""
