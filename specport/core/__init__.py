"""The device-neutral speculation core: token ids, trees, probabilities, costs. Imports no runtime."""
