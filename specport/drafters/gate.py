"""Asks a costly drafter only while its drafts save time on this device. Knows seconds, not models.

Every drafted token must pay for itself. What a round without a draft would have taken is estimated
from the round itself: its verify time over the profile's cost of that many tokens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specport.core.ports import Drafter, DraftRequest, Outcome
from specport.core.tree import TokenTree

_FADE = 0.8  # how much of the balance a round later still counts
_TRIAL = 3  # rounds before a verdict


@dataclass
class _State:
    wait: int  # rounds until the drafter is asked again
    pause: int  # how long the next wait will be
    balance: float = 0.0  # seconds saved, fading
    rounds: int = -1  # judged since the last wait; the first is not: it reads up on the context
    spent: float | None = None  # seconds of this round's draft, if there was one


class WhilePaying:
    """Wraps a drafter. After a loss it pauses, each time twice as long, and then tries again.

    cost:     new tokens -> time of a verify step over that of a single token (`Profile.cost`).
    patience: rounds without any draft before the first try: a draft first reads its window of the
              context, which an answer of a few words never pays back.

    Decisions rest on the clock, so a seeded sampled text, which must come out twice the same, is never
    gated; a greedy text does not depend on them.
    """

    def __init__(self, drafter: Drafter, cost: Mapping[int, float], patience: int = 12) -> None:
        self._drafter = drafter
        self._cost = ([*cost], [*cost.values()])
        self._patience = patience
        self._states: dict[int, _State] = {}

    @property
    def name(self) -> str:
        return self._drafter.name

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        trees = [TokenTree()] * len(requests)
        asked = [i for i, request in enumerate(requests) if self._open(request)]
        if not asked:
            return trees
        began = time.perf_counter()
        for i, tree in zip(asked, self._drafter.propose([requests[i] for i in asked]), strict=True):
            trees[i] = tree
        spent = (time.perf_counter() - began) / len(asked)
        for i in asked:
            self._states[requests[i].key].spent = spent
        return trees

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            state = self._states.get(outcome.key)
            if state is not None and state.spent is not None:
                self._judge(state, outcome, state.spent)
                state.spent = None
        self._drafter.observe(outcomes)

    def forget(self, key: int) -> None:
        self._states.pop(key, None)
        self._drafter.forget(key)

    def _open(self, request: DraftRequest) -> bool:
        params = request.sampler.params
        state = self._states.setdefault(request.key, _State(self._patience, self._patience))
        if not params.greedy and params.seed is not None:
            return True
        state.wait -= 1
        return state.wait < 0

    def _judge(self, state: _State, outcome: Outcome, spent: float) -> None:
        state.rounds += 1
        if not state.rounds:
            return
        plain = outcome.verify_s / float(np.interp(len(outcome.tree) + 1, *self._cost))
        saved = outcome.num_accepted_tokens * plain - (spent + outcome.verify_s - plain)
        state.balance = _FADE * state.balance + saved
        if state.rounds >= _TRIAL and state.balance < 0:
            state.pause *= 2
            state.wait, state.balance, state.rounds = state.pause, 0.0, -1
