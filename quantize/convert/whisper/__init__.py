"""Conversion of Whisper models: weights of two formats to graphs of OpenVINO."""
