"""`specport quantize diffusion`: make a block-diffusion language model from an autoregressive one.

It learns from text that a target writes (`own_text.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from specport.quantize.train import decoders
from specport.quantize.train.diffusion import about
from specport.quantize.train.diffusion.about import About
from specport.quantize.train.diffusion.recipe import BLOCK, Recipe
from specport.quantize.train.own_text import Settings, Training

from specport.errors import ModelError
from specport.jobs import worker
from specport.models.kinds.diffusion import BASE, KIND, find_facts, is_diffusion
from specport.outside.places import expanded
from specport.progress import Progress, silent
from specport.text.tokenizer import load_tokenizer

MAKE = worker.Job("specport.quantize.train.diffusion.training:make", grace_s=120.0)


def build(
    target: str | None,
    out: Path,
    recipe: Recipe,
    *,
    start: str | None = None,
    layers: int | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> About:
    """Make a diffusion model that writes as `target` does, in the new Hugging Face folder `out`.

    start:    model that the training begins with: the target itself (None), a decoder with its tokenizer, or
              a diffusion model that was made before.
    layers:   number of its layers to keep; None = all.
    settings: as of `Settings`. Raises SpecportError; finished stages are kept.
    """
    training = Training.of(target, out, Settings(**settings), progress, start, check_decoder)
    source, files, tokenizer = training.source, training.files, training.tokenizer
    if start is not None and source.is_dir():
        mismatch = load_tokenizer(source).mismatch(tokenizer)
        if mismatch:
            raise ModelError(f"{start} has another tokenizer than the target: {mismatch}")
    names = {"target": files.name, "start": files.name if start is None else name_of(start, source)}
    training.run(
        "diffusion", MAKE, with_block(recipe, source), about.write, names,
        request={"start": str(source), "layers": layers},
        arguments={"layers": layers, "vocab": tokenizer.vocab_size, "ends": [*tokenizer.eos_ids]},
    )  # fmt: skip
    return about.read(out)


def check_decoder(config: Mapping[str, Any]) -> None:
    """Raise ModelError for the configuration of a model that cannot be trained."""
    kind = config.get("model_type")
    if kind == KIND:
        config = {**config, "model_type": config.get(BASE)}
    elif is_diffusion(config):
        raise ModelError(f"{kind} is a diffusion model already", "name an autoregressive model")
    decoders.check(config, "fill in masks")


def with_block(recipe: Recipe, source: Path) -> Recipe:
    """Return a recipe that says how long a block is. source: what the training begins with."""
    facts = find_facts(source) if source.is_dir() else None
    return replace(recipe, block=recipe.block or (facts.block_length if facts else BLOCK))


def name_of(given: str, source: Path) -> str:
    """Return the name of a model that a user names, whose weights are at `source`: a hub id's last part."""
    if source.is_file():
        return source.stem
    return (source.resolve() if expanded(given).is_dir() else Path(given.partition("@")[0])).name
