"""What a folder of healed weights says of itself, for a bundle that is made from it on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from specport.errors import ModelError
from specport.models import bundle
from specport.models.atomic import write_json
from specport.text.tokenizer import read_json

NAME = "healed.json"
_HEAD = "head"


class Healed(NamedTuple):
    """facts: as `heal.heal` returns them; empty = not healed. head: ids that it learned with; None = all."""

    facts: Mapping[str, Any]
    head: tuple[int, ...] | None = None


def write(folder: Path, facts: Mapping[str, Any], head: Sequence[Sequence[int]] | None) -> None:
    """head: ranges of ids, as in a bundle."""
    write_json(folder / NAME, {**facts, _HEAD: head})


def read(folder: Path) -> Healed:
    """Of a folder, or of what is none. Raises ModelError."""
    facts = read_json(folder / NAME) if folder.is_dir() else {}
    if not facts:
        return Healed({})
    try:
        head = facts.pop(_HEAD)
        int(facts["layers"]), str(facts["precision"])
        return Healed(facts, None if head is None else bundle.expand(head))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / NAME} is damaged: {error!r}", "heal it again") from error
