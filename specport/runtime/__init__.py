"""From names to a loaded model: backends, profiles, numerics, stored measurements."""
