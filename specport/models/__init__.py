"""Models: where they come from, where they are kept, and how text becomes token ids."""
