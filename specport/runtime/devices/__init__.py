"""Devices: hardware profiles, and backends that are found for them."""
