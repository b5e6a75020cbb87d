"""A tiny model with random weights for agents: room for some steps, and a template that teaches calls."""

from __future__ import annotations

import json
from pathlib import Path

from smolagents import Tool

from support.processes.served import write_tiny
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


class Answer(Tool):
    """Ends a run, as smolagents' own does; short, since a random model ends no string by itself."""

    name = "final_answer"
    description = "Ends"
    inputs = {"answer": {"type": "string", "description": "it", "maxLength": 8}}  # noqa: RUF012
    output_type = "string"

    def forward(self, answer: str) -> str:
        return answer
