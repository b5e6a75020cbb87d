"""Check the arguments of a model's methods in one place: a base for implementations of the model port.

A backend may use it or implement `Model` on its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from specport.core.block import Block
from specport.core.ports.hidden_head import HiddenHead
from specport.core.ports.model import EarlyExit, GreedyChain, HeadRows, Model
from specport.core.ports.prefix_blocks import PrefixBlocks
from specport.core.ports.weight_updates import WeightUpdates

_NOTHING = Block((), ())


@dataclass(kw_only=True)
class CachedSequence:
    """Hold one sequence's number of committed tokens, and the block of its last step.

    pending: waits for `commit`; empty where there is none.
    """

    length: int = 0
    pending: Block = field(default=_NOTHING)

    def settle(self, length: int) -> None:
        """Set the number of committed tokens; nothing is pending behind them."""
        self.length, self.pending = length, _NOTHING


Handle = TypeVar("Handle", bound=CachedSequence)


class CheckedModel(ABC, Generic[Handle]):
    """Check the arguments of `open`, `fork` and `truncate` (`Model`) for a model without optional features.

    Subclasses implement `open_checked`, `fork_checked` and, where needed, `truncate_checked`. A model that
    takes conditioning overrides `open`.
    """

    early_exit: EarlyExit | None = None
    chain: GreedyChain | None = None
    head_rows: HeadRows | None = None
    hidden_head: HiddenHead | None = None
    mtp: Model | None = None
    slim: Model | None = None
    prefix_blocks: PrefixBlocks | None = None
    weight_updates: WeightUpdates | None = None

    @property
    def cache_usage(self) -> float | None:
        return None

    def open(self, capacity: int = 0, conditioning: Any = None) -> Handle:
        if conditioning is not None:
            raise ValueError("this model takes no conditioning")
        return self.open_checked(capacity)

    def fork(self, handle: Handle, length: int) -> Handle:
        _check_beginning(handle, length, "fork")
        return self.fork_checked(handle, length)

    def truncate(self, handle: Handle, length: int) -> None:
        _check_beginning(handle, length, "truncate")
        self.truncate_checked(handle, length)

    @abstractmethod
    def open_checked(self, capacity: int) -> Handle:
        """Open a new sequence with room for `capacity` tokens. Raises ContextFull."""

    @abstractmethod
    def fork_checked(self, handle: Handle, length: int) -> Handle:
        """Open a sequence with the first `length` committed tokens of another. Raises ContextFull."""

    def truncate_checked(self, handle: Handle, length: int) -> None:
        """Discard what is behind the first `length` committed tokens."""
        handle.settle(length)


def _check_beginning(handle: CachedSequence, length: int, verb: str) -> None:
    """Raise ValueError where a sequence has fewer than `length` committed tokens."""
    if not 0 <= length <= handle.length:
        raise ValueError(f"cannot {verb} a sequence of {handle.length} tokens at {length}")
