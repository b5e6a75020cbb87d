"""The plan of a draft: depth, branches and stop rule. Plain data between policies and drafters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True)
class Drafted:
    """Hold the facts about a drafted token that a stop rule may use.

    confidences: the drafter's probability of each token from the root's child to this one.
    top:         the largest probabilities of the token's draft distribution, likeliest first.
    entropy:     of that distribution, in nats.

    top is empty and entropy 0 where the rule's `top_k` is 0.
    """

    confidences: tuple[float, ...]
    top: tuple[float, ...] = ()
    entropy: float = 0.0

    @property
    def position(self) -> int:
        """Return the depth in the tree: 1 is the first drafted token."""
        return len(self.confidences)


class StopRule(Protocol):
    """Decide after each drafted token whether to draft on below it. The token itself stays in the draft."""

    @property
    def top_k(self) -> int:
        """Return the length of `Drafted.top` that it needs; 0 = neither top nor entropy is computed."""
        ...

    def goes_on(self, token: Drafted) -> bool:
        """Return whether to draft below this token."""
        ...


@dataclass(frozen=True)
class Plan:
    """Hold how to draft in one round.

    depth:      maximum path length; 0 = do not draft.
    branches:   number of children per node at depth 1, 2, ...; missing entries mean 1 (a chain).
    stop:       asked after each token of a drafter with confidence; None = draft to `depth`.
    """

    depth: int
    branches: tuple[int, ...] = ()
    stop: StopRule | None = None

    @property
    def max_nodes(self) -> int:
        """Return the number of nodes of the largest tree that this plan allows."""
        total, level = 0, 1
        for depth in range(self.depth):
            level *= self.branches[depth] if depth < len(self.branches) else 1
            total += level
        return total

    def within(self, depth: int, nodes: int, *, tree: bool) -> Plan:
        """Return the plan cut to `depth` and `nodes`; branches are dropped where they exceed `nodes`.

        tree: whether branches are allowed.
        """
        plan = replace(self, depth=max(0, min(self.depth, depth)))
        if not tree:
            plan = replace(plan, branches=())
        if plan.max_nodes > nodes:
            plan = replace(plan, depth=max(0, min(plan.depth, nodes)), branches=())
        return plan
