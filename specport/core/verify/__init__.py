"""Verification: the acceptance rules, the target's scores, and the verifier that owns the target's step."""
