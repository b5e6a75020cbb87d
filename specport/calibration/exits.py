"""Chooses the layer after which a target exits early to draft for itself, by what that brings here.

An early exit is cheap and often wrong, a late one right and dear. Models that were not trained for it
(`specport quantize layerskip`) are wrong nearly everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specport.calibration.heads import agreements, rate, step_seconds
from specport.core.model_kinds import EarlyExitModel
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Row, StepOutput
from specport.errors import ModelError
from specport.progress import Progress
from specport.text.builtin_prompts import Text
from specport.text.tokenizer import read_json

_MOST_TRIED = 9


@dataclass(frozen=True)
class Exit:
    """One exit and what was measured of it.

    layer:     layers before it.
    seconds:   of drafting a token.
    agreement: share of the target's tokens that it would have proposed.
    rate:      tokens a second that they make, at the number of draft tokens that suits them best.
    """

    layer: int
    seconds: float
    agreement: float
    rate: float


class FirstLayers:
    """The part of a model before its exit, as a model whose steps can be timed and read like a draft's.

    Prompts (rows that want their last logits only) are read by the whole model, since nothing drafted can be
    committed; everything else is drafted.
    """

    def __init__(self, model: EarlyExitModel) -> None:
        self._model = model
        self.capabilities = replace(model.capabilities, tree=False, exit_layer=0)
        self.vocab_size, self.max_context = model.vocab_size, model.max_context
        self.open, self.close = model.open, model.close
        self.truncate = model.truncate

    def commit(self, handle: Any, kept: Sequence[int]) -> None:
        if kept:
            self._model.commit(handle, kept)
        else:  # forgets what was drafted
            self._model.truncate(handle, handle.length)

    def step(self, rows: Sequence[Row]) -> StepOutput:
        reads = all(row.logits == "last" for row in rows)
        return self._model.step(rows) if reads else self._model.draft(rows)


def num_layers(folder: Path) -> int:
    """Decoder layers of the model in a folder, by its configuration."""
    config = read_json(folder / "config.json")
    found = config.get("num_hidden_layers") or config.get("text_config", {}).get("num_hidden_layers")
    if not isinstance(found, int):
        raise ModelError(
            f"{folder / 'config.json'} does not say num_hidden_layers", "name a layer: early-exit:E"
        )
    return found


def candidates(num_layers: int) -> list[int]:
    """Exits worth trying: at most so many, evenly spread, none so late that hardly a layer is saved."""
    latest = max(1, (3 * num_layers) // 4)
    count = min(latest, _MOST_TRIED)
    return sorted({1 + (latest - 1) * i // max(1, count - 1) for i in range(count)})


def compare(
    load: Callable[[int], Any],
    layers: Sequence[int],
    texts: Sequence[Text],
    target: StepCosts,
    progress: Progress,
) -> tuple[Exit, ...]:
    """What each exit costs and how well it agrees with what the whole model wrote (`texts`).

    load: the model with this exit. target: costs of the whole model's steps. What a step saves since it takes
    over what was drafted is left out: it is the same work that drafting did.
    """
    found: list[Exit] = []
    for number, layer in enumerate(layers):
        progress(f"exit after layer {layer}", number / len(layers))
        first = FirstLayers(load(layer))
        (share,) = agreements(first, texts, [None])
        seconds = step_seconds(first)
        found.append(Exit(layer, seconds, share, rate(share, seconds, target)))
        del first  # before the next one is compiled
    return tuple(found)


def best(exits: Sequence[Exit]) -> Exit:
    """The fastest; of those that make plain decoding no faster, the one that agrees best for its cost."""
    return max(exits, key=lambda exit_: (exit_.rate, exit_.agreement / exit_.seconds))
