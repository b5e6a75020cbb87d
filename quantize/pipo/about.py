"""The record of a pair model's training, kept beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.quantize.pipo.recipe import Examined

from specport.models.atomic import write_json
from specport.outside import Format

NAME = "pipo.json"
FORMAT = 1


@dataclass(frozen=True)
class About:
    """What was trained and how, with the result on text that the model was not trained on.

    source: the model's name. recipe: entries of `recipe.Recipe`.
    before, after: supervised training. distilled: on-policy distillation; None = there was none.
    tokens_read, seconds: of supervised training; distil_steps, distil_seconds: of the other.
    """

    source: str
    recipe: Mapping[str, Any]
    before: Examined
    after: Examined
    tokens_read: int
    seconds: float
    date: str
    versions: Mapping[str, str]
    distilled: Examined | None = None
    distil_steps: int = 0
    distil_seconds: float = 0.0


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the entries of `About`, and others that are of interest to people, into a folder."""
    write_json(folder / NAME, {"format": FORMAT, **facts})


def read(folder: Path) -> About:
    """Read the record of a trained model. Raises ModelError where it cannot be read."""
    return _ABOUT.read(folder / NAME)


_ABOUT = Format(About, "the record of a training", "run specport quantize pipo again", version=FORMAT)
