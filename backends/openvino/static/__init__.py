"""The model of fixed shapes, for the NPU."""
