"""Read prompt files: one JSON object per line with `id`, `category` and `turns` (a list of user messages)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specport.errors import InvalidInput


@dataclass(frozen=True)
class Prompt:
    """Hold one question. Only the first turn of a conversation is kept: later ones depend on its answer."""

    id: str
    category: str
    text: str


def read_prompts(path: Path, per_category: int | None = None, categories: Sequence[str] = ()) -> list[Prompt]:
    """Return the prompts of a file in its order, at most `per_category` of each category.

    Raises InvalidInput with the line number for a file or line that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read the prompt file {path}: {error}") from error
    found: dict[str, list[Prompt]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompt = _parse(line, f"{path}, line {number}")
            found.setdefault(prompt.category, []).append(prompt)
    if unknown := [c for c in categories if c not in found]:
        raise InvalidInput(f"no category {unknown[0]!r} in {path}", f"there are {', '.join(found)}")
    chosen = [p for c, own in found.items() if not categories or c in categories for p in own[:per_category]]
    if not chosen:
        raise InvalidInput(
            f"{path} holds no prompts", "write one JSON object with id, category and turns per line"
        )
    if len({prompt.id for prompt in chosen}) < len(chosen):
        raise InvalidInput(f"{path} has the same id twice")
    return chosen


def _parse(line: str, where: str) -> Prompt:
    try:
        item = json.loads(line)
        text = item["turns"][0]
        if not isinstance(text, str) or not text.strip():
            raise TypeError
        return Prompt(str(item["id"]), str(item["category"]), text)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidInput(
            f"{where} is not a prompt", 'write it like {"id": 1, "category": "qa", "turns": ["Why?"]}'
        ) from error
