"""A tiny model with random weights for agents: room for some steps, and a template that teaches calls."""

from __future__ import annotations

import json
from pathlib import Path

from support.served import write_tiny
from support.tool_templates import HERMES

MAX_CONTEXT = 8192


def write(folder: Path) -> Path:
    """Write the model as a Hugging Face folder."""
    target, _ = write_tiny(folder)
    for name, changed in (
        ("config.json", {"max_position_embeddings": MAX_CONTEXT}),
        ("tokenizer_config.json", {"chat_template": HERMES}),
    ):
        path = target / name
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    return target
