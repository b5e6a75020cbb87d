"""The planner: every drafted token must pay for itself, by measured cost. Knows no device and no model.

In each round it looks for the draft with the most expected tokens a second: one token and all nodes'
chances to be accepted, over the seconds of drafting and verifying. A draft that costs nothing to make
(n-gram) is made first and cut to the nodes that pay; a model is asked when its forecast is better, and
stops where the next token would not pay. When nothing pays, nothing is drafted.

Costs are `StepCosts`, refined by every step; chances come from `Acceptance`, by drafter, confidence and
depth, and from the sequence at hand. A seeded sampled text must come out twice the same, so its plans
rest neither on the clock nor on other texts, before it or beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from specport.core.planning.acceptance_rates import Acceptance, Local
from specport.core.planning.forecast import Forecast
from specport.core.planning.step_costs import MAX_WIDTH, StepCosts
from specport.core.planning.tree_pruning import Candidate, Curve, best_cut, row_widths
from specport.core.ports import Capabilities, Drafted, DraftRequest, Outcome, Plan, PlannedDrafter, top_k_of
from specport.core.tree import TokenTree

_PROBE_DEPTH = 2
# A text is expected to go on for as many tokens as it has, and these: behind a prompt to summarize or correct
# come a few sentences at least, behind one to search often a few words.
_LINDY = 32
_TOKENS_A_ROUND = 2.5
UNKNOWN_COST = 0.35  # of a plain step: a draft model that was never timed


@dataclass(frozen=True)
class Source:
    """A drafter and what its model's steps cost; None: drafting takes no time worth counting.

    reach: chance of its node at depth 1, 2, ... where that was measured before; () = nothing is known.
    """

    drafter: PlannedDrafter
    costs: StepCosts | None = None
    reach: tuple[float, ...] = ()


@dataclass(frozen=True)
class PathGate:
    """Draft on while the next token is likely enough to pay.

    least: [depth] smallest chance of the path so far at which one more token pays.
    """

    local: Local
    least: tuple[float, ...]
    top_k: ClassVar[int] = 0

    def goes_on(self, token: Drafted) -> bool:
        depth = token.position
        return depth < len(self.least) and self.local.path(token.confidences) >= self.least[depth]


@dataclass
class _State:
    """One sequence."""

    costs: StepCosts
    draft_costs: list[StepCosts | None]
    local: list[Local]
    forecasts: list[Forecast]
    repeatable: bool
    num_prompt_tokens: int
    asked: int | None = None  # whose tree is being verified


@dataclass
class _Round:
    """One request's round: the best candidate so far, its drafter, and what it brings a token for."""

    request: DraftRequest
    state: _State
    curve: Curve
    rate: float
    best: Candidate = field(default_factory=Candidate)
    asked: int | None = None


class Planner:
    """Chooses among drafters and cuts their trees, for the most expected tokens a second.

    costs:        of the target's steps.
    capabilities: the target's; what a row costs depends on how it is stepped.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        costs: StepCosts,
        capabilities: Capabilities = Capabilities(),  # noqa: B008  (frozen)
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = "|".join(dict.fromkeys(source.drafter.name for source in sources))
        self.top_k = top_k_of(*(source.drafter for source in sources))
        self._sources = list(sources)
        self._costs = costs
        self._forked = capabilities.forked_trees
        self._min_width = capabilities.min_width
        self._clock = clock
        self._acceptance = [Acceptance(source.drafter.prior) for source in sources]
        self._states: dict[int, _State] = {}
        self._last_width = 0

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        rounds = [self._begin(request, len(requests)) for request in requests]
        for i, source in enumerate(self._sources):
            if source.costs is None:
                self._try(i, rounds)
        for i, source in enumerate(self._sources):
            if source.costs is not None:
                self._ask(i, [r for r in rounds if self._seems_to_pay(i, r)])
        for r in rounds:
            r.state.asked = r.asked
        return [r.best.tree for r in rounds]

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            self._observe_step(outcomes[0])
        for outcome in outcomes:
            state = self._states.get(outcome.key)
            if state is not None and state.asked is not None:
                state.local[state.asked].observe(outcome.tree, outcome.path)
                state.asked = None
        for source in self._sources:
            source.drafter.observe(outcomes)

    def _observe_step(self, outcome: Outcome) -> None:
        """Learn what the step cost; the outcomes of all its rows tell the same."""
        tree = outcome.tree
        own = int(row_widths(tree, range(len(tree)), forked=self._forked)[-1]) if len(tree) else 1
        width = outcome.num_other_tokens + max(own, self._min_width)
        changed = self._last_width not in (0, width)
        self._costs.observe(width, outcome.context, outcome.verify_s, changed=changed)
        self._last_width = width

    def forget(self, key: int) -> None:
        self._states.pop(key, None)
        for source in self._sources:
            source.drafter.forget(key)

    def _begin(self, request: DraftRequest, num_rows: int) -> _Round:
        state = self._states.get(request.key)
        if state is None:
            state = self._states[request.key] = self._open(request)
        context = len(request.context)
        curve, others = state.costs.curve(context), 0
        if not state.repeatable:
            # Each other row brings at least its root token, padded as this one would be.
            others = min((num_rows - 1) * self._min_width, MAX_WIDTH // 2)
            if 0 < self._last_width <= MAX_WIDTH:
                change = state.costs.change_seconds(context)
                curve = curve + change
                curve[self._last_width] -= change
        curve = np.concatenate([[0.0], curve[1 + others : 2 + others + request.plan.depth]])
        curve[1 : self._min_width] = curve[self._min_width : self._min_width + 1]
        request = replace(request, plan=Plan(depth=len(curve) - 2))
        return _Round(request, state, curve, rate=float(curve[1]))

    def _open(self, request: DraftRequest) -> _State:
        params = request.sampler.params
        repeatable = not params.greedy and params.seed is not None
        sources = self._sources
        costs, draft_costs, acceptance = self._costs, [s.costs for s in sources], self._acceptance
        if repeatable:
            costs = costs.fixed()
            draft_costs = [c and c.fixed() for c in draft_costs]
            acceptance = [Acceptance(s.drafter.prior) for s in sources]
        return _State(
            costs,
            draft_costs,
            [Local(shared) for shared in acceptance],
            [Forecast(s.reach) for s in sources],
            repeatable,
            len(request.context),
        )

    def _try(self, which: int, rounds: Sequence[_Round]) -> None:
        """Let a drafter that costs nothing draft, and keep what has more tokens a second."""
        trees = self._sources[which].drafter.propose([r.request for r in rounds])
        for r, tree in zip(rounds, trees, strict=True):
            chances = r.state.local[which].chances(tree)
            found = best_cut(tree, chances, r.curve, forked=self._forked)
            if found is not None and found.rate(r.curve) < r.rate:
                r.best, r.asked, r.rate = found, which, found.rate(r.curve)

    def _seems_to_pay(self, which: int, r: _Round) -> bool:
        """Whether a costly drafter's forecast beats the round's best, or it is time to probe it.

        Sets the round's plan for it.
        """
        forecast = r.state.forecasts[which]
        depth = len(r.curve) - 2
        if depth < 1:
            return False
        behind = self._sources[which].drafter.behind(r.request)
        forecast.begin(whole=behind in (1, len(r.request.context)))  # 1: the rest is read already
        reading, each = self._draft_seconds(which, r, behind)
        first = each + reading / _rounds_to_come(r)
        tokens = 1.0 + np.cumsum(forecast.reach[:depth])
        seconds = first + each * np.arange(depth) + r.curve[2:]
        rate = float(np.min(seconds / tokens))
        if rate < r.rate:
            forecast.paid()
            r.rate = rate
            r.request = replace(r.request, plan=Plan(depth, stop=self._gate(which, r, each)))
            return True
        depth = min(depth, _PROBE_DEPTH)
        probe = reading + depth * each + float(r.curve[1 + depth] - r.curve[1])
        if not forecast.probes(probe / float(r.curve[1]), wanted=r.asked is None):
            return False
        stop = PathGate(r.state.local[which], (0.0,) * depth)
        r.request = replace(r.request, plan=Plan(depth, stop=stop))
        return True

    def _draft_seconds(self, which: int, r: _Round, behind: int) -> tuple[float, float]:
        """Seconds to read what the drafter has not read yet, and for each token of a draft."""
        costs = r.state.draft_costs[which]
        assert costs is not None  # asked of costly drafters only
        context = len(r.request.context)
        if not costs.known:
            costs.assume(UNKNOWN_COST * r.state.costs.step(1, context))
        each = costs.step(1, context)
        return costs.step(behind, context) - each, each

    def _gate(self, which: int, r: _Round, each: float) -> PathGate:
        """Where the draft stops: one more node costs a draft step and a token of the target's."""
        reach = r.state.forecasts[which].reach
        least = [0.0]
        for depth in range(1, len(r.curve) - 2):
            onward = reach[depth] / reach[depth - 1]
            least.append((each + r.curve[depth + 2] - r.curve[depth + 1]) / (r.rate * onward))
        return PathGate(r.state.local[which], tuple(least))

    def _ask(self, which: int, rounds: Sequence[_Round]) -> None:
        """Let a costly drafter draft; its time is spent, so only verifying still has to pay."""
        if not rounds:
            return
        drafter = self._sources[which].drafter
        behind = [drafter.behind(r.request) for r in rounds]
        began = self._clock()
        trees = drafter.propose([r.request for r in rounds])
        spent = (self._clock() - began) / len(rounds)
        for r, tree, read in zip(rounds, trees, behind, strict=True):
            if not len(tree):
                continue
            state = r.state
            costs = state.draft_costs[which]
            if costs is not None and not state.repeatable and read <= 2:  # else it was mostly reading
                costs.observe(1, len(r.request.context), spent / max(tree.depths()))
            chances = state.local[which].chances(tree)
            state.forecasts[which].learn(_spine(tree, chances))
            found = best_cut(tree, chances, r.curve, forked=self._forked, rate=r.rate)
            assert found is not None  # it is a chain no deeper than the curve
            # What was drawn must be verified: to drop it for what it is would change the text's law.
            if tree.probs is not None or found.value(r.curve, r.rate) > r.best.value(r.curve, r.rate):
                r.best, r.asked = found, which


def _rounds_to_come(r: _Round) -> float:
    """Reading a long context is an investment that later rounds of the same text share."""
    written = len(r.request.context) - r.state.num_prompt_tokens
    return max(1.0, min(r.request.num_left, _LINDY + written) / _TOKENS_A_ROUND)


def _spine(tree: TokenTree, chances: Sequence[float]) -> list[float]:
    """[depth] the best chance at each depth of the tree."""
    best: dict[int, float] = {}
    for depth, chance in zip(tree.depths(), chances, strict=True):
        best[depth] = max(best.get(depth, 0.0), chance)
    return [best[depth] for depth in sorted(best)]
