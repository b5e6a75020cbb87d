"""Load models by name: backends, profiles, numerics checks, stored measurements."""
