"""The record of a LayerSkip training, kept beside the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.quantize.train.layerskip.recipe import Sweep

from specport.models.atomic import write_json
from specport.outside import Format

NAME = "layerskip.json"
FORMAT = 1


@dataclass(frozen=True)
class About:
    """What was trained and how, with the result.

    source: the model's name. recipe: entries of `recipe.Recipe`.
    before, after: measured on text that the model was not trained on.
    """

    source: str
    recipe: Mapping[str, Any]
    before: Sweep
    after: Sweep
    tokens_read: int
    seconds: float
    date: str
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        if len(self.before.agreement) != len(self.after.agreement):
            raise ValueError("different numbers of exits before and after")


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the entries of `About`, and others that are of interest to people, into a folder."""
    write_json(folder / NAME, {"format": FORMAT, **facts})


def read(folder: Path) -> About:
    """Read the record of a trained model. Raises ModelError where it cannot be read."""
    return _ABOUT.read(folder / NAME)


_ABOUT = Format(About, "the record of a training", "run specport quantize layerskip again", version=FORMAT)
