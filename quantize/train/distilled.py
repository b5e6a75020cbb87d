"""The record in a folder of distilled weights, for a bundle that is built from it on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from specport.errors import ModelError
from specport.models import bundle
from specport.models.atomic import write_json
from specport.models.json_file import read_json

NAME = "distilled.json"
PARALLEL = "in_parallel"  # the fact that becomes `Bundle.parallel`
_HEAD = "head"


class Distilled(NamedTuple):
    """The record of a distillation.

    facts: as `draft.distil_draft` returns them; empty = not distilled.
    head:  ids of the head that the draft was trained with; None = all.
    """

    facts: Mapping[str, Any]
    head: tuple[int, ...] | None = None


def write(folder: Path, facts: Mapping[str, Any], head: Sequence[Sequence[int]] | None) -> None:
    """Write the record into a folder. head: ranges of ids, as in a bundle."""
    write_json(folder / NAME, {**facts, _HEAD: head})


def read(folder: Path) -> Distilled:
    """Read the record of a folder; an empty one where there is none.

    Raises ModelError where it is damaged.
    """
    facts = read_json(folder / NAME) if folder.is_dir() else {}
    if not facts:
        return Distilled({})
    try:
        head = facts.pop(_HEAD)
        int(facts["layers"]), str(facts["precision"])
        return Distilled(facts, None if head is None else bundle.expand(head))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / NAME} is damaged: {error!r}", "distil the draft again") from error
