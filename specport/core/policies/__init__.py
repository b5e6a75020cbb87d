"""Policies with fixed rules, and the user's choice of a policy as plain data."""
