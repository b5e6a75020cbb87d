"""The record of a block-diffusion training, kept beside the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.quantize.train.diffusion.recipe import Quality

from specport.models.atomic import write_json
from specport.outside import Format

NAME = "diffusion.json"
FORMAT = 1


@dataclass(frozen=True)
class About:
    """What was trained and how, with the result.

    target:   name of the model that wrote the text.
    start:    name of the model that the training began with; the target, or an earlier diffusion model.
    layers:   of the trained model. dropped: numbers of the layers of `start` that it lacks.
    mask:     token id of the mask.
    recipe:   entries of `recipe.Recipe`.
    target_perplexity: of the held-out answers under the target, which wrote them greedily.
    before, after: measured on text that the model was not trained on.
    """

    target: str
    start: str
    layers: int
    dropped: tuple[int, ...]
    mask: int
    recipe: Mapping[str, Any]
    target_perplexity: float
    before: Quality
    after: Quality
    tokens_read: int
    steps: int
    seconds: float
    date: str
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        if len(self.before.accuracy) != len(self.after.accuracy):
            raise ValueError("different blocks before and after")


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the entries of `About`, and others that are of interest to people, into a folder."""
    write_json(folder / NAME, {"format": FORMAT, **facts})


def read(folder: Path) -> About:
    """Read the record of a trained model. Raises ModelError where it cannot be read."""
    return ABOUT.read(folder / NAME)


ABOUT = Format(About, "the record of a training", "run specport quantize diffusion again", version=FORMAT)
