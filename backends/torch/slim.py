"""Run a target's slim verifier on slots (`Model.slim`): its layers but some, with a cache of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specport.backends.torch.devices import Place
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.halves import decoder_of, without
from specport.backends.torch.slots.model import SlotModel
from specport.backends.torch.slots.step import StepModule

from specport.errors import InvalidInput, ModelError
from specport.runtime.caches import memory
from specport.runtime.devices.registry import LoadOptions


@dataclass(frozen=True)
class Slim:
    """Hold what a target's slim verifier is made of, where one is asked for.

    decoder: shares the target's weights; None = there is no slim verifier.
    budget, slim_budget: what the caches of the target and of its slim verifier may take, in bytes.
    """

    decoder: Any
    name: str
    options: LoadOptions
    place: Place
    budget: Callable[[], int]
    slim_budget: Callable[[], int]

    @classmethod
    def of(cls, model: Any, name: str, options: LoadOptions, place: Place, budget: Callable[[], int]) -> Slim:
        """Return it for a decoder whose weights are in place.

        Make it before the decoder's own `StepModule`, which replaces parts of it. budget: for both caches.
        Raises InvalidInput beside an early exit, and ModelError where the layers cannot be skipped.
        """
        if not options.skipped_layers:
            return cls(None, name, options, place, budget, lambda: 0)
        if options.exit_layer:
            raise InvalidInput(
                "a slim verifier and an early exit exclude each other", "choose another --draft"
            )
        decoder, total = without(model, options.skipped_layers), len(decoder_of(model).layers)

        def slim() -> int:
            return memory.slim_share(budget(), total, len(options.skipped_layers))

        return cls(decoder, name, options, place, lambda: budget() - slim(), slim)

    def beside(self, target: SlotModel) -> SlotModel:
        """Return the target with its slim verifier, which steps as it does, where there is one.

        Raises ModelError for a decoder with states.
        """
        if self.decoder is None:
            return target
        cache, can = SlotCache(self.decoder.dtype, self.place.device), target.capabilities
        module = StepModule(self.decoder, cache)
        if cache.shape.states:
            raise ModelError(f"no slim verifier: {self.name} has layers with states", "leave out --verify")
        target.slim = SlotModel(
            self.place.runner(module),
            cache,
            vocab_size=target.vocab_size,
            max_context=target.max_context,
            widths=target.widths,
            exact=can.exact,
            batch=can.batch,
            tree=can.tree,
            static=bool(self.options.profile.buckets),
            whole=self.place.whole,
            budget=self.slim_budget,
        )
        return target
