"""The ports of the core: what a backend, a drafter and a policy are to the engine.

Plain data passes between them. Nothing here knows a runtime, a tokenizer or a device; arrays are
array-API arrays (https://data-apis.org/array-api) that may live on a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from specport.core.tree import TokenTree

if TYPE_CHECKING:  # the sampler itself needs nothing of the ports
    from specport.core.sampling.sampler import Sampler

Array = Any  # an array-API array; the standard defines no common static type


@dataclass(frozen=True)
class Capabilities:
    """What a loaded model can do. A missing capability is a value that callers read, not an error."""

    tree: bool = False  # rows may branch; without it only chains may be stepped
    forked_trees: bool = False  # a branch costs its whole path, not just its own tokens
    min_width: int = 1  # a row with fewer new tokens is padded to this many, and costs as much
    batch: bool = False  # several rows in one step
    exact: bool = False  # logits do not depend on how tokens are split over steps and rows
    hidden_states: tuple[int, ...] = ()  # layers whose output a step returns
    rollback: Literal["index", "crop", "copy"] = "index"  # what undoing rejected tokens costs
    buckets: tuple[int, ...] = ()  # static step widths; empty = any width
    chain: int = 0  # most tokens of a row that `ChainModel.chain` takes; 0 = the model has no such method
    head_rows: bool = False  # the head is cut, and `CutHeadModel.head_rows` has what it lacks
    exit_layer: int = 0  # first layers that `EarlyExitModel.draft` runs; 0 = the model has no early exit


class CacheHandle(Protocol):
    """One sequence in a model's cache. Owned by the model; others only read `length`.

    What a model is given back is typed `Any`, since each model knows its own kind: pass only handles
    that the same model opened.
    """

    @property
    def length(self) -> int:
        """Committed tokens in the cache."""
        ...


@dataclass(frozen=True)
class Row:
    """One sequence and the tree of tokens to append to it in a step. A prompt is a chain.

    The tree's -1 is the last token *in the cache*, so a row normally starts with the root token.
    logits: "all" returns one row of logits a node, "last" only the last node's (prefill).
    """

    handle: Any  # a CacheHandle of the model that steps
    tree: TokenTree
    logits: Literal["all", "last"] = "all"


@dataclass(frozen=True)
class StepOutput:
    """Result of `Model.step`. Valid until the next step of the same model.

    logits:  [total, vocab] rows of all sequences, one after the other; stays on the device.
    offsets: [rows + 1]; row r owns logits[offsets[r]:offsets[r + 1]].
    hidden:  layer -> [total, width], for the layers named in `Capabilities.hidden_states`.
    head_input: [total, width] what the head made the logits of; with `Capabilities.head_rows` only.
    seconds: time inside the runtime's own inference call.
    """

    logits: Array
    offsets: tuple[int, ...]
    seconds: float = 0.0
    hidden: Mapping[int, Array] = field(default_factory=dict)
    head_input: Array | None = None


class Model(Protocol):
    """A loaded language model on a device; what a backend implements."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def vocab_size(self) -> int:
        """Width of the logits; may be padded beyond the tokenizer's vocabulary."""
        ...

    @property
    def max_context(self) -> int:
        """Most tokens a sequence may hold, prompt and output together."""
        ...

    def open(self, capacity: int = 0) -> CacheHandle:
        """A new, empty sequence; `capacity` tokens are reserved at once, more are added on demand."""
        ...

    def step(self, rows: Sequence[Row]) -> StepOutput:
        """Append each row's tree to its sequence and score it. Nothing is committed yet.

        Raises ContextFull, before anything changed, when a row would pass `max_context`.
        """
        ...

    def commit(self, handle: Any, kept: Sequence[int]) -> None:
        """Keep these nodes of the last step, a root-to-leaf path; all its other nodes are gone."""
        ...

    def truncate(self, handle: Any, length: int) -> None:
        """Forget every committed token from position `length` on."""
        ...

    def close(self, handle: Any) -> None:
        """Give the sequence's cache back. Closing twice is harmless."""
        ...


@dataclass(frozen=True)
class Drafted:
    """What is known of a drafted token when a stop rule is asked.

    confidences: the drafter's probability of each token from the root's child to this one.
    top:         the largest probabilities of the distribution it was chosen from, likeliest first.
    entropy:     of that distribution, in nats.

    top is empty and entropy 0 where the rule asks for none of them.
    """

    confidences: tuple[float, ...]
    top: tuple[float, ...] = ()
    entropy: float = 0.0

    @property
    def position(self) -> int:
        """Depth in the tree: 1 is the first drafted token."""
        return len(self.confidences)


class StopRule(Protocol):
    """Decides after each drafted token whether to draft on below it. The token itself is verified."""

    @property
    def top_k(self) -> int:
        """How many of `Drafted.top` it wants; 0 = neither these nor the entropy are worked out."""
        ...

    def goes_on(self, token: Drafted) -> bool: ...


@dataclass(frozen=True)
class Plan:
    """How to draft in one round.

    depth:      longest path to draft; 0 = do not draft.
    branches:   children a node gets at depth 1, 2, ...; missing entries mean 1 (a chain).
    stop:       asked after each token of a drafter with confidence; None = draft to `depth`.
    """

    depth: int
    branches: tuple[int, ...] = ()
    stop: StopRule | None = None

    @property
    def max_nodes(self) -> int:
        """Nodes of the fullest tree that this plan allows."""
        total, level = 0, 1
        for depth in range(self.depth):
            level *= self.branches[depth] if depth < len(self.branches) else 1
            total += level
        return total


@dataclass(frozen=True)
class DraftRequest:
    """What a drafter gets to see of one sequence.

    key:     identifies the sequence from its first `propose` to `forget`.
    context: all committed token ids, the root token last. Append-only between rounds; read only.
    sampler: target's sampling parameters and this sequence's random stream; drafts are drawn with it.
    num_left: tokens that may still be written.
    handle:  of the target's own cache, which holds the context up to the root token: for a drafter that runs
             on the target itself. Others leave it alone.
    """

    key: int
    context: Sequence[int]
    plan: Plan
    sampler: Sampler
    num_left: int = 1
    handle: Any = None


@dataclass(frozen=True)
class Outcome:
    """What became of one proposed tree: fed to drafters and policies after every verify step.

    top: [n + 1, k] the target's likeliest successors, likeliest first, of the root token and of every
         node, accepted or not. None unless the drafter asks for them (see `top_k_of`).
    """

    key: int
    tree: TokenTree
    path: tuple[int, ...]  # accepted nodes, root to leaf
    plan: Plan
    verify_s: float = 0.0  # seconds in the target's inference call; shared by the rows of a batch
    context: int = 0  # tokens in the cache before the step
    num_other_tokens: int = 0  # new tokens of the step's other rows
    root: int = -1  # the root token
    top: NDArray[np.int64] | None = field(default=None, compare=False)  # arrays have no plain ==

    @property
    def num_accepted_tokens(self) -> int:
        return len(self.path)


class Drafter(Protocol):
    """A way to propose tokens."""

    @property
    def name(self) -> str: ...

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        """One tree a request, in order; an empty tree where there is nothing to propose."""
        ...

    def observe(self, outcomes: Sequence[Outcome]) -> None: ...

    def forget(self, key: int) -> None:
        """The sequence has ended: free what is held for it."""
        ...


def top_k_of(*drafters: object) -> int:
    """How many columns of `Outcome.top` these want: the most that any has as its attribute `top_k`.

    A drafter that learns from the target's logits has one, and so has one that holds such drafters.
    """
    return max((getattr(drafter, "top_k", 0) for drafter in drafters), default=0)


class PlannedDrafter(Drafter, Protocol):
    """A drafter that the planner can reckon with."""

    @property
    def prior(self) -> Sequence[float]:
        """Acceptance by bin of confidence (`acceptance_rates.EDGES`) before anything was observed."""
        ...

    def behind(self, request: DraftRequest) -> int:
        """Tokens of the context that its model has to read before the first draft token; 0 = no model."""
        ...


class Policy(Protocol):
    """Decides how much to draft. One instance a sequence, so that a seed gives the same text twice."""

    def plan(self) -> Plan: ...

    def observe(self, outcome: Outcome) -> None: ...
