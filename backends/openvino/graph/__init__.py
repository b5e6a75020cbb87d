"""Surgery on OpenVINO graphs."""
