"""Results of the suite on several devices and architectures, as tables."""
