"""`specport quantize pipo`: train a model to read and write pairs of tokens. The result is lossy.

It learns from text that the original writes (`quantize/train/own_text.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specport.quantize.pipo import about
from specport.quantize.pipo.about import About
from specport.quantize.pipo.recipe import Recipe, check_decoder
from specport.quantize.train.own_text import Settings, Training

from specport.jobs import worker
from specport.progress import Progress, silent

TRAIN = worker.Job("specport.quantize.pipo.training:pipo", grace_s=120.0)


def build(
    target: str | None, out: Path, recipe: Recipe, *, progress: Progress = silent, **settings: Any
) -> About:
    """Train `target` on text that it writes, and write the pair model to the new folder `out`.

    settings: as of `Settings`. Raises SpecportError; finished stages are kept.
    """
    training = Training.of(target, out, Settings(**settings), progress, check=check_decoder)
    training.run(
        "pipo", TRAIN, recipe, about.write, {"source": training.files.name}, written=0.3,
        arguments={"name": training.files.name, "ends": sorted(training.tokenizer.eos_ids)},
    )  # fmt: skip
    return about.read(out)
