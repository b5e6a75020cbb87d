"""The record in a folder of distilled weights, for a bundle that is built from it on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct

from specport.models import bundle
from specport.models.atomic import write_json
from specport.outside import Format, Table
from specport.outside.numbers import Layer

NAME = "distilled.json"
PARALLEL = "in_parallel"  # the fact that becomes `Bundle.parallel`
_HEAD = "head"


class Distilled(NamedTuple):
    """The record of a distillation.

    facts: as `draft.distil_draft` returns them; empty = not distilled.
    head:  ids of the head that the draft was trained with; None = all.
    folder: of the weights; None = not distilled.
    """

    facts: Mapping[str, Any]
    head: tuple[int, ...] | None = None
    folder: Path | None = None


class _Record(Struct):
    layers: Layer
    precision: str
    head: bundle.Ranges | None

    def __post_init__(self) -> None:
        bundle.check_head(self.head)


_AGAIN = "distil the draft again"
_FACTS = Format(Table, "the record of a distillation", _AGAIN)
_RECORD = Format(_Record, "the record of a distillation", _AGAIN)


def write(folder: Path, facts: Mapping[str, Any], head: Sequence[Sequence[int]] | None) -> None:
    """Write the record into a folder. head: ranges of ids, as in a bundle."""
    write_json(folder / NAME, {**facts, _HEAD: head})


def read(folder: Path) -> Distilled:
    """Read the record of a folder; an empty one where there is none.

    Raises ModelError where it is damaged.
    """
    facts = _FACTS.read_if_there(folder / NAME) if folder.is_dir() else None
    if not facts:
        return Distilled({})
    head = _RECORD.of(facts, str(folder / NAME)).head
    del facts[_HEAD]
    return Distilled(facts, None if head is None else bundle.expand(head), folder)
