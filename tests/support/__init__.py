"""Helpers of the tests: toy models and backends, tiny checkpoints, exact sampling laws."""
