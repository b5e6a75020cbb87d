"""MTP heads: making of a module for multi-token prediction for a target that ships none."""
