"""A model with a small cache, for the tests of room, refusals and of what stays in use."""

from __future__ import annotations

from specport.conformance.pair import Pair
from specport.core.ports import CacheHandle, Model
from specport.errors import ContextFull, SpecportError

TEXTS, TOKENS = 3, 100  # at least so many sequences at a time, of at least so many tokens
_SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)  # tokens in 32 bits that the cache is given memory for
_MOST = 16  # sequences of a whole context that a cache without a bound takes


def bounded(pair: Pair) -> Model | None:
    """Return the target with the smallest cache for TEXTS texts; None where `cache_bytes` has no effect.

    How much memory a cache needs for so many tokens is each backend's own business, so sizes are tried.
    """
    config = pair.config
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    row = 2 * 4 * pair.num_layers * int(config.get("num_key_value_heads", heads)) * width
    for size in _SIZES:
        try:
            model = pair.variant(cache_bytes=size * row)
        except SpecportError:  # too small for any text
            continue
        if _holds(model, TEXTS, TOKENS) and _holds(model, 1, 2 * TOKENS):
            return None if _holds(model, _MOST, model.max_context) else model
    return None


def _holds(model: Model, count: int, capacity: int) -> bool:
    """Return whether so many sequences of this capacity can be open at a time."""
    handles: list[CacheHandle] = []
    try:
        for _ in range(count):
            handles.append(model.open(capacity))
    except ContextFull:
        return False
    finally:
        for handle in handles:
            model.close(handle)
    return True
