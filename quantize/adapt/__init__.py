"""Adapting a draft to its user: read the log, mix, train, judge, and swap the draft."""
