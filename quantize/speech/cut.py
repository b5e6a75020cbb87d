"""Cut a Whisper's decoder: a whole model with the target's encoder and embeddings, and few decoder layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from specport.quantize.convert.whisper.source import WhisperSource

from specport.errors import InvalidInput

_LAYER = re.compile(r"model\.decoder\.layers\.(\d+)\.(.+)")


def kept_layers(total: int, count: int) -> tuple[int, ...]:
    """Return which layers are kept: the first, the last, and others at even distances (Distil-Whisper).

    A single one is the first. Raises InvalidInput for a count that leaves none or cuts none.
    """
    if not 1 <= count < total:
        raise InvalidInput(
            f"layers is {count}; the target's decoder has {total}, keep 1 to {total - 1} of them"
        )
    return tuple(int(i) for i in np.linspace(0, total - 1, count).round())


def cut(found: WhisperSource, layers: Sequence[int]) -> WhisperSource:
    """Return the model with these layers of its decoder, in this order."""
    places = {layer: place for place, layer in enumerate(layers)}
    weights = {}
    for name, array in found.weights.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            weights[name] = array
        elif int(match[1]) in places:
            weights[f"model.decoder.layers.{places[int(match[1])]}.{match[2]}"] = array
    config = {**found.config, "decoder_layers": len(layers)}
    return replace(
        found,
        weights=weights,
        config=config,
        generation=_generation(found.generation, places),
        shape=replace(found.shape, decoder_layers=len(layers)),
    )


def with_mask(found: WhisperSource) -> WhisperSource:
    """Return the model with one more id, MASK, whose embedding is the mean of all."""
    name = "model.decoder.embed_tokens.weight"
    table = found.weights[name]
    mean = table.astype(np.float32).mean(axis=0, keepdims=True).astype(table.dtype)
    vocab = found.shape.vocab + 1
    return replace(
        found,
        weights={**found.weights, name: np.concatenate([table, mean])},
        config={**found.config, "vocab_size": vocab},
        shape=replace(found.shape, vocab=vocab),
    )


def _generation(given: dict[str, Any], places: dict[int, int]) -> dict[str, Any]:
    """Return generation_config.json without the alignment heads of layers that are gone."""
    found = dict(given)
    heads = found.pop("alignment_heads", None)
    if isinstance(heads, list):
        pairs = [pair for pair in heads if isinstance(pair, list) and len(pair) == 2]
        kept = [[places[layer], head] for layer, head in pairs if layer in places]
        if kept:
            found["alignment_heads"] = kept
    return found
