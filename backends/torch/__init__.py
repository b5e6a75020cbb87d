"""Torch: CPU, CUDA and Gaudi."""
