"""OpenVINO: Intel Xeon and Core Ultra."""
