"""What agents get where they say nothing."""

from __future__ import annotations

MAX_TOKENS = 2048  # of an answer: a step of an agent is longer than an answer in a chat
