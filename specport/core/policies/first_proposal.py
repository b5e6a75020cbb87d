"""The policy that asks drafters in order; a length rule says how many tokens each sequence drafts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from specport.core.planning.constrained import held
from specport.core.policies.length_rules import LengthRule
from specport.core.ports import Drafter, DraftRequest, Needs, Outcome, Prefilled
from specport.core.tree import TokenTree


class FirstProposal:
    """Ask drafters in order; each gets only the requests for which all earlier ones proposed nothing.

    make_rule: makes the length rule of each new sequence.
    tree:      whether the target verifies trees.
    constrained: drafters for texts under a constraint only, asked first. They know what is accepted, so no
               length rule binds them, and they are no part of the policy's name.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        make_rule: Callable[[], LengthRule],
        *,
        tree: bool = True,
        constrained: Sequence[Drafter] = (),
    ) -> None:
        self.name = "|".join(dict.fromkeys(drafter.name for drafter in drafters))
        self.needs = Needs.of(*drafters)
        self._drafters, self._make_rule, self._tree = [*drafters], make_rule, tree
        self._constrained = [*constrained]
        self._rules: dict[int, LengthRule] = {}

    def draft(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        planned = [self._planned(request) for request in requests]
        trees = [TokenTree()] * len(requests)
        for drafter in (*self._constrained, *self._drafters):
            free = drafter in self._constrained
            asked_for = requests if free else planned
            left = [
                i for i, (tree, request) in enumerate(zip(trees, asked_for, strict=True))
                if not len(tree) and request.plan.depth > 0 and (request.sampler.constraint or not free)
            ]  # fmt: skip
            if not left:
                continue
            asked = [asked_for[i] for i in left]
            behind = [_behind(drafter, request) for request in asked]
            began = time.perf_counter()
            proposed = drafter.propose(asked)
            seconds = time.perf_counter() - began
            for i, found, read in zip(left, proposed, behind, strict=True):
                trees[i] = tree = held(requests[i], found)
                if (counts := requests[i].counts) is not None:
                    counts.asked(drafter.name, seconds, read)
                    counts.chosen = drafter.name if len(tree) else ""
        return trees

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        for drafter in self._drafters:
            drafter.prefilled(events)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            forced = outcome.tree.sources[:1] in [(drafter.name,) for drafter in self._constrained]
            if len(outcome.tree) and outcome.key in self._rules and not forced:
                self._rules[outcome.key].observe(outcome)
        for drafter in self._drafters:
            drafter.observe(outcomes)

    def forget(self, key: int) -> None:
        self._rules.pop(key, None)
        for drafter in self._drafters:
            drafter.forget(key)

    def _planned(self, request: DraftRequest) -> DraftRequest:
        rule = self._rules.get(request.key)
        if rule is None:
            rule = self._rules[request.key] = self._make_rule()
        plan = rule.plan().within(request.plan.depth, request.max_nodes, tree=self._tree)
        return replace(request, plan=plan)


def _behind(drafter: Drafter, request: DraftRequest) -> int:
    """Return how many tokens the drafter's model has to read first, where the drafter says so."""
    behind = getattr(drafter, "behind", None)  # of a `PlannedDrafter`
    return 0 if behind is None or request.counts is None else int(behind(request))
