"""What models cost on this machine: measuring it, and keeping what was measured."""
