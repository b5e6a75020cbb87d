"""Rounds that sequences of any number of threads share: what every engine has, whatever its rounds do.

`add` and `cancel` may be called at any time from any thread. A thread that wants tokens steps the engine for
all sequences; other threads wait for that step and read their tokens from their sequence's inbox. An engine
has no thread of its own, so nothing runs while no caller asks for tokens.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

from specport.core.ports import Model
from specport.core.sequence import Commit, Generation, KeptCache
from specport.errors import DeviceError


class Drafts(Protocol):
    """Name what drafts for an engine."""

    @property
    def name(self) -> str: ...


class Rounds(ABC):
    """Run generations on a target in rounds.

    policy: what drafts; None = nothing does.
    """

    def __init__(self, model: Model, policy: Drafts | None) -> None:
        self.model = model
        self.policy = policy
        self._turn = threading.Condition()  # guards `_stepping`
        self._stepping = False

    def check(self, generation: Generation) -> None:
        """Raise InvalidInput for a generation whose options this engine cannot follow."""
        return  # most can follow all of them

    @abstractmethod
    def add(self, generation: Generation) -> None:
        """Add a sequence from the next round on. Its tokens come out of `run` or its inbox."""

    def cancel(self, generation: Generation) -> None:
        """Ask for the end of a sequence before the next round."""
        generation.cancel()

    def run(self, generations: Sequence[Generation]) -> Generator[Commit, None, None]:
        """Add these sequences, and yield their tokens as they are committed until all have finished.

        Dropping the iterator cancels them; the next `step` or `tidy` of any thread frees their memory. An
        exception of an `on_token` of theirs ends the iterator too, after the commit in which it was raised.
        """
        for generation in generations:
            self.add(generation)
        try:
            while commits := self._fetch(generations):
                for commit in commits:
                    yield commit
                    if commit.fault is not None:
                        raise commit.fault
        finally:  # the garbage collector may run this in the middle of a round: take no lock, call no model
            for generation in generations:
                generation.cancel()

    @abstractmethod
    def release(self, kept: KeptCache) -> None:
        """Free a kept cache before the next round."""

    @abstractmethod
    def step(self) -> list[Commit]:
        """Run one round over all sequences; return its commits, which are also put into the inboxes."""

    @abstractmethod
    def tidy(self) -> None:
        """Free the memory of ended, cancelled and dropped sequences."""

    def update_weights(self, weights: Mapping[str, Any]) -> None:
        """Replace weights of the model between two rounds (`WeightUpdates`).

        Raises DeviceError where the model cannot do it, and InvalidInput for weights that it does not have.
        """
        raise DeviceError(
            "the weights of this model cannot be replaced while it is loaded",
            "load it on a torch device; a mixture of experts there without exact mode",
        )

    @property
    @abstractmethod
    def num_unfinished(self) -> int:
        """Return the number of sequences that wait or run."""

    def _fetch(self, generations: Sequence[Generation]) -> list[Commit]:
        """Return new commits of these sequences; step unless another thread does. [] once all finished."""
        while True:
            mine = False
            try:
                with self._turn:
                    if commits := _emptied(generations):
                        return commits
                    if all(g.ended for g in generations):
                        break
                    if self._stepping:
                        self._turn.wait(1.0)  # without a timeout, Ctrl-C would not interrupt it on Windows
                        continue
                    mine = self._stepping = True
                self.step()
            finally:
                if mine:
                    with self._turn:
                        self._stepping = False
                        self._turn.notify_all()
        self.tidy()  # waits for another thread's step, which may commit the last tokens
        return _emptied(generations)


def _emptied(generations: Sequence[Generation]) -> list[Commit]:
    """Empty the inboxes and return the commits."""
    return [g.inbox.popleft() for g in generations for _ in range(len(g.inbox))]
