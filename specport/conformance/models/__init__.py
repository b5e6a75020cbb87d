"""The tiny random models on which the suite runs."""
