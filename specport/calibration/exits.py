"""Choose the layer after which a target exits early to draft for itself, by measured speed.

An early exit is cheap but often wrong; a late one is accurate but slow. Models that were not trained to exit
early (`specport quantize layerskip`) are wrong at nearly every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specport.calibration.heads import agreements, expected_speed, step_seconds
from specport.calibration.target_text import Text
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Model, Row, StepOutput
from specport.errors import ModelError
from specport.models.json_file import text_config, whole
from specport.progress import Progress

_MOST_TRIED = 9


@dataclass(frozen=True)
class Exit:
    """One exit and its measurements.

    layer:     number of layers before the exit.
    seconds:   to draft one token.
    agreement: share of the target's tokens that the exit proposes.
    tokens_per_second: expected with the best number of draft tokens.
    """

    layer: int
    seconds: float
    agreement: float
    tokens_per_second: float


class FirstLayers:
    """The layers of a model before its exit, behind the model port, to be measured like a draft model.

    Rows that want the last logits at most (prompts) are read by the whole model, since drafted tokens cannot
    be committed. All other rows are drafted.
    """

    def __init__(self, model: Model) -> None:
        assert model.early_exit is not None  # the model was loaded with an exit
        self._model, self._exit = model, model.early_exit
        self.capabilities = replace(model.capabilities, visibility="chain", gather=False)
        self.vocab_size, self.max_context = model.vocab_size, model.max_context
        self.early_exit = self.chain = self.head_rows = self.hidden_head = self.mtp = None
        self.slim = self.prefix_blocks = self.weight_updates = None
        self.cache_usage = None
        self.open, self.close, self.room, self.fork = model.open, model.close, model.room, model.fork
        self.truncate = model.truncate

    def commit(self, handle: Any, nodes: Sequence[int]) -> None:
        if nodes:
            self._model.commit(handle, nodes)
        else:  # drop the drafted tokens
            self._model.truncate(handle, handle.length)

    def step(self, rows: Sequence[Row]) -> StepOutput:
        is_prompt = all(row.logits != "all" for row in rows)
        return self._model.step(rows) if is_prompt else self._exit.draft(rows)


def num_layers(folder: Path) -> int:
    """Return the number of decoder layers by a folder's config.json. Raises ModelError where it has none."""
    count = whole(text_config(folder), "num_hidden_layers", 1 << 16)
    if count is None:
        raise ModelError(
            f"{folder / 'config.json'} does not say num_hidden_layers", "name a layer: early-exit:E"
        )
    return count


def candidates(num_layers: int) -> list[int]:
    """Return exits to try: evenly spread, at most _MOST_TRIED, none in the last quarter of the layers."""
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
    """Return the cost of each exit and its agreement with the whole model's `texts`.

    load:   loads the model with this exit.
    target: costs of the whole model's steps. A verify step takes over the layers that drafting has run; that
            saving is not counted.
    """
    exits: list[Exit] = []
    for number, layer in enumerate(layers):
        progress(f"exit after layer {layer}", number / len(layers))
        first = FirstLayers(load(layer))
        (share,) = agreements(first, texts, [None])
        seconds = step_seconds(first)
        exits.append(Exit(layer, seconds, share, expected_speed(share, seconds, target)))
        del first  # before the next one is compiled
    return tuple(exits)


def best(exits: Sequence[Exit]) -> Exit:
    """Return the fastest exit.

    Of equal ones (plain decoding), the one with the best agreement for its cost.
    """
    return max(exits, key=lambda exit_: (exit_.tokens_per_second, exit_.agreement / exit_.seconds))
