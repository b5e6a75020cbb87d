"""Run a target's slim verifier on slots (`Model.slim`): its layers but some, with a cache of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specport.backends.torch.devices import Place
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.halves import decoder_of, without
from specport.backends.torch.slots.model import SlotModel
from specport.backends.torch.slots.step import StepModule

from specport.errors import InvalidInput, ModelError
from specport.runtime import memory
from specport.runtime.registry import LoadOptions


def cut(model: Any, options: LoadOptions) -> Any:
    """Return the slim verifier of a decoder whose weights are in place; None where none is asked for.

    Make it before the decoder's own `StepModule`, which replaces parts of it.
    Raises InvalidInput beside an early exit, and ModelError where the layers cannot be skipped.
    """
    if not options.skipped_layers:
        return None
    if options.exit_layer:
        raise InvalidInput("a slim verifier and an early exit exclude each other", "choose another --draft")
    return without(model, options.skipped_layers)


def budgets(
    model: Any, options: LoadOptions, budget: Callable[[], int]
) -> tuple[Callable[[], int], Callable[[], int]]:
    """Return what the caches of a target and of its slim verifier may take of the target's budget."""
    if not options.skipped_layers:
        return budget, lambda: 0
    total = len(decoder_of(model).layers)

    def slim() -> int:
        return memory.slim_share(budget(), total, len(options.skipped_layers))

    return lambda: budget() - slim(), slim


def load_slim(
    decoder: Any, name: str, options: LoadOptions, place: Place, target: SlotModel, budget: Callable[[], int]
) -> SlotModel:
    """Return a decoder from `cut` as a model that steps as its target does.

    name: of the target. Raises ModelError for a decoder with states.
    """
    cache = SlotCache(decoder.dtype, place.device)
    module = StepModule(decoder, cache)
    if cache.shape.states:
        raise ModelError(f"no slim verifier: {name} has layers with states", "leave out --verify")
    can = target.capabilities
    return SlotModel(
        place.runner(module),
        cache,
        vocab_size=target.vocab_size,
        max_context=target.max_context,
        widths=target.widths,
        exact=can.exact,
        batch=can.batch,
        tree=can.tree,
        static=bool(options.profile.buckets),
        whole=place.whole,
        budget=budget,
    )
