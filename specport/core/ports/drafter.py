"""The drafter port: the interface of a drafter, its requests and events, and its needs of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specport.core.arrays import Array
from specport.core.ports.counts import DraftingCounts
from specport.core.ports.plan import Plan
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree

if TYPE_CHECKING:
    from specport.core.planning.passes import ParallelPasses


@dataclass(frozen=True)
class Needs:
    """Hold what a drafter needs from the target's steps.

    hidden: whether it needs the states of `Capabilities.hidden_layers`, of prompts and of verified tokens.
    top_k:  number of columns of `Outcome.top`; 0 = none.
    prompt: whether its drafts depend on states of the whole prompt: they are others where a cache held its
            beginning.
    """

    hidden: bool = False
    top_k: int = 0
    prompt: bool = False

    @classmethod
    def of(cls, *members: HasNeeds) -> Needs:
        """Return the union of these members' needs."""
        needs = [member.needs for member in members]
        return cls(
            any(n.hidden for n in needs),
            max((n.top_k for n in needs), default=0),
            any(n.prompt for n in needs),
        )


class HasNeeds(Protocol):
    """Define the common interface of drafters and their parts."""

    @property
    def needs(self) -> Needs: ...


@dataclass(frozen=True)
class DraftRequest:
    """Hold what a drafter may read of one sequence.

    key:     identifies the sequence from its first `propose` to `forget`.
    context: all committed token ids, the root token last. Append-only between rounds; read only.
    plan:    how to draft. Before a policy has planned, only its depth counts, as an upper bound.
    max_nodes: maximum number of nodes of a tree.
    sampler: the target's sampling parameters and this sequence's random stream; drafts are sampled with it.
    num_left: number of tokens that may still be generated.
    handle:  the target's cache, which holds the context up to the root token: only for a drafter that runs on
             the target itself.
    num_prefill_tokens: prompt tokens of other sequences in the coming step.
    counts:  where the policy counts what it asked of whom, and whose draft it chose; None = nowhere.
    conditioning: what a draft model's sequence is opened with, as the target's was; None = nothing.
    """

    key: int
    context: Sequence[int]
    plan: Plan
    sampler: Sampler
    max_nodes: int = 64
    num_left: int = 1
    handle: Any = None
    num_prefill_tokens: int = 0
    counts: DraftingCounts | None = None
    conditioning: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class Prefilled:
    """Hold a part of a sequence's prompt that the target has read.

    start:  position of its first token; tokens: the ids.
    hidden: layer -> [tokens, width] the target's hidden states, where the drafter needs them.
    """

    key: int
    start: int
    tokens: Sequence[int]
    hidden: Mapping[int, Array] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Outcome:
    """Hold the result of verifying one tree, which may be empty; sent to drafters and policies.

    top:    [n + 1, k] the target's likeliest successors, likeliest first, of the root token and of every
            node, accepted or not. None unless the drafter asks for them (`Needs.top_k`).
    hidden: layer -> [n + 1, width] the target's hidden states of the same tokens, where the drafter needs
            them.
    """

    key: int
    tree: TokenTree
    path: tuple[int, ...]  # accepted nodes, root to leaf
    verify_s: float = 0.0  # seconds of the target's inference call, for all rows of the batch together
    context: int = 0  # tokens in the cache before the step
    num_other_tokens: int = 0  # new tokens of the step's other rows, padding included
    root: int = -1  # the root token
    top: NDArray[np.int64] | None = field(default=None, compare=False)  # arrays have no plain ==
    hidden: Mapping[int, Array] = field(default_factory=dict, compare=False)

    @property
    def num_accepted_tokens(self) -> int:
        return len(self.path)


class Drafter(Protocol):
    """Propose tokens. One instance serves all sequences."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        """Return one tree for each request, in order; an empty tree where there is nothing to propose."""
        ...

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        """Receive prompt tokens that the target has read, in text order."""
        ...

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Receive the results of the last proposals."""
        ...

    def forget(self, key: int) -> None:
        """Free what is held for a sequence that has ended."""
        ...


class PlannedDrafter(Drafter, Protocol):
    """Extend a drafter with the estimates that the planner needs."""

    @property
    def prior(self) -> Sequence[float]:
        """Return the acceptance by bin of confidence (`acceptance_rates.EDGES`) before any observation."""
        ...

    @property
    def parallel(self) -> ParallelPasses | None:
        """Return the passes of its model, where one drafts several tokens; None = one pass per token."""
        ...

    def behind(self, request: DraftRequest) -> int:
        """Return how many tokens its model must read before the first draft token; 0 = no model."""
        ...
