"""specport: speculative decoding that runs, and pays, on any hardware."""

__version__ = "0.1.0"
