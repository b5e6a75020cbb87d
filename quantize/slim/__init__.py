"""The search for the layers that a target's slim verifier skips."""
