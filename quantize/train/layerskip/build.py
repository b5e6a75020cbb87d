"""`specport quantize layerskip`: train a target to exit early, on text that it writes (`own_text.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specport.quantize.train.layerskip import about
from specport.quantize.train.layerskip.about import About
from specport.quantize.train.layerskip.recipe import Recipe
from specport.quantize.train.own_text import Settings, Training

from specport.jobs import worker
from specport.progress import Progress, silent

TRAIN = worker.Job("specport.quantize.train.layerskip.training:layerskip", grace_s=120.0)


def build(
    target: str | None, out: Path, recipe: Recipe, *, progress: Progress = silent, **settings: Any
) -> About:
    """Train `target` on text that it writes, and write it to the new Hugging Face folder `out`.

    settings: as of `Settings`. Raises SpecportError; finished stages are kept.
    """
    training = Training.of(target, out, Settings(**settings), progress)
    training.run("layerskip", TRAIN, recipe, about.write, {"source": training.files.name})
    return about.read(out)
