"""Damage: hostile files, kills, full disks."""
