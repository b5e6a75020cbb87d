"""The model with a paged cache and dynamic shapes."""
