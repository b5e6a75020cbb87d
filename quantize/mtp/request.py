"""What is asked of an MTP head: plain data, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.quantize.train import pace

from specport.errors import InvalidInput, ModelError
from specport.models.kinds.mtp_head import MAX_DEPTH

LOSSES = ("ce", "kl", "tv", "e2e-tv", "lk", "lk-mix")  # `train.losses.CHAIN_LOSSES`, which needs torch
KINDS = ("llama", "qwen2", "qwen3", "mistral")  # of targets; others scale or shift what this does not know
RATE = 1e-4  # learning rate; 3e-4 undoes what a new head starts with


@dataclass(frozen=True)
class Recipe:
    """How a head is trained. Raises InvalidInput for values out of range.

    loss:   one of LOSSES.
    depth:  tokens that it is trained to draft in a row.
    top:    learn from so many of the target's likeliest tokens at each place; 0 = from all.
    epochs, learning_rate, batch_tokens, seed: as for `train.pace.Pace`.
    """

    loss: str = "e2e-tv"
    depth: int = 5
    top: int = 0
    epochs: float = 3.0
    learning_rate: float = RATE
    batch_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InvalidInput(f"unknown loss {self.loss!r} of an MTP head", f"choose {', '.join(LOSSES)}")
        if not 1 <= self.depth <= MAX_DEPTH:
            raise InvalidInput(f"depth is {self.depth}; it must be from 1 to {MAX_DEPTH}")
        if self.top < 0:
            raise InvalidInput(f"teacher_top is {self.top}; it must be 0 (all tokens) or more")
        pace.check(self)


@dataclass(frozen=True)
class Request:
    """What to build. Raises InvalidInput for values out of range.

    distil_tokens: tokens that the target writes, at temperature 1, for the head to learn from.
    prompts:     the user's own turns (see `prompts.divide`).
    head_tokens: most frequent ids that it can draft; 0 = all. A head that training starts from keeps its own.
    start:       the bundle of an MTP head to train further; None = start anew (`start.write_first`).
    loss, depth, teacher_top, epochs, learning_rate, seed: as in `Recipe`.
    """

    distil_tokens: int = 200_000
    prompts: tuple[str, ...] = ()
    head_tokens: int = 8192
    start: Path | None = None
    loss: str = "e2e-tv"
    depth: int = 5
    teacher_top: int = 0
    epochs: float = 3.0
    learning_rate: float = RATE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.distil_tokens < 1:
            raise InvalidInput(f"distil_tokens is {self.distil_tokens}; it must be 1 or more")
        if self.head_tokens < 0:
            raise InvalidInput(f"head_tokens is {self.head_tokens}; it must be 0 or more")
        self.recipe  # noqa: B018  # checks the rest

    @property
    def recipe(self) -> Recipe:
        """The part of the request that training reads."""
        return Recipe(
            self.loss, self.depth, self.teacher_top, self.epochs, self.learning_rate, seed=self.seed
        )


def check_decoder(config: Mapping[str, Any]) -> None:
    """Raise ModelError for the configuration of a target that no head is trained for."""
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ModelError(
            f"MTP heads are not trained for models of the kind {kind}",
            f"choose a target of the kinds {', '.join(KINDS)}, or specport quantize head",
        )
