"""The record of a LayerSkip training, kept beside the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.quantize.train.layerskip.recipe import Sweep

from specport.errors import ModelError
from specport.models.atomic import write_json
from specport.models.json_file import read_json

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


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the entries of `About`, and others that are of interest to people, into a folder."""
    write_json(folder / NAME, {"format": FORMAT, **facts})


def read(folder: Path) -> About:
    """Read the record of a trained model. Raises ModelError where it cannot be read."""
    path = folder / NAME
    try:
        stored = read_json(path)
        if stored["format"] != FORMAT:
            raise ModelError(f"{path} has format {stored['format']}, this version reads {FORMAT}")
        before, after = (
            Sweep(tuple(map(float, stored[name]["agreement"])), float(stored[name]["perplexity"]))
            for name in ("before", "after")
        )
        if len(before.agreement) != len(after.agreement):
            raise ValueError("different numbers of exits before and after")
        return About(
            str(stored["source"]), dict(stored["recipe"]), before, after, int(stored["tokens_read"]),
            float(stored["seconds"]), str(stored["date"]), dict(stored["versions"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}", "run specport quantize layerskip again") from error
