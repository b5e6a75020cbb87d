"""Read prompt files: one JSON object per line with `id`, `category` and `turns` (a list of user messages)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from specport.errors import InvalidInput
from specport.outside import Format

TOTALS = "all"  # stands for the whole file where categories are shown


@dataclass(frozen=True)
class Prompt:
    """Hold one question. Only the first turn of a conversation is kept: later ones depend on its answer."""

    id: str
    category: str
    text: str


class _Item(Struct):
    id: str | int
    category: str | int
    turns: Annotated[list[Any], Meta(min_length=1)]

    def __post_init__(self) -> None:
        if not isinstance(self.turns[0], str) or not self.turns[0].strip():
            raise ValueError("its first turn is no text")
        if self.category == TOTALS:
            raise ValueError(f"no category can be named {TOTALS}, which stands for all of them")


_ITEM = Format(
    _Item, "a prompt", 'write it like {"id": 1, "category": "qa", "turns": ["Why?"]}', InvalidInput
)


def read_prompts(path: Path, per_category: int | None = None, categories: Sequence[str] = ()) -> list[Prompt]:
    """Return the prompts of a file in its order, at most `per_category` of each category.

    Raises InvalidInput with the line number for a file or line that cannot be read.
    """
    found: dict[str, list[Prompt]] = {}
    for item in _ITEM.lines(path):
        found.setdefault(str(item.category), []).append(
            Prompt(str(item.id), str(item.category), item.turns[0])
        )
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
