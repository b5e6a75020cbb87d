"""A round of the engine: what each sequence works on, what came of it, and who works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from specport.core.ports import Refusal
from specport.core.sequence import Commit, Generation


@dataclass(frozen=True)
class Work:
    """Hold a sequence's part of a round.

    count: number of unread tokens to read: a chunk of the prompt, or 1 for the root token.
    draft: whether to draft below the root token.
    """

    generation: Generation
    count: int
    draft: bool = True


@dataclass
class Round:
    """Collect the results of a round: commits, and refused sequences."""

    commits: list[Commit] = field(default_factory=list)
    refused: list[tuple[Generation, Refusal]] = field(default_factory=list)


class Decoding(Protocol):
    """Decode sequences, one round at a time."""

    def round(self, work: Sequence[Work], done: Round) -> None:
        """Run a round over these sequences. done: receives the results, also those before an exception."""
        ...

    def forget(self, key: int) -> None:
        """Free what is held for a sequence (`Generation.key`)."""
        ...
