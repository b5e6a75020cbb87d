"""The planner: draft only tokens that pay by measured cost. Knows no device and no model.

In each round the planner maximizes expected tokens per second: one token plus the acceptance probabilities
of all nodes, divided by the seconds of drafting and verification. Drafters without a model (n-gram) draft
first, and their trees are cut to the nodes that pay. A draft model is asked when its forecast is better, and
stops where the next token would not pay. Nothing is drafted when nothing pays.

Costs come from `StepCosts`, refined by every step. Probabilities come from `Acceptance` by drafter, by
confidence and by depth, with a correction for each sequence. A seeded sampled text must be repeatable, so its
plans depend neither on the clock nor on other texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from specport.core.planning.acceptance_rates import Acceptance, Local
from specport.core.planning.admission import Bid, admit
from specport.core.planning.forecast import Forecast
from specport.core.planning.policies import CAP, require_at_least
from specport.core.planning.row_plan import PathGate, RowPlan, Source, TextState, rounds_to_come
from specport.core.planning.step_costs import StepCosts
from specport.core.planning.tree_pruning import best_cut, row_widths
from specport.core.ports import Capabilities, DraftRequest, Needs, Outcome, Plan, Prefilled
from specport.core.tree import TokenTree

_PROBE_DEPTH = 2
WIDEST = 1024  # most new tokens of a step, over all rows, for which costs are evaluated
UNKNOWN_COST = 0.35  # assumed step of a draft model that was never timed, in plain steps of the target


class Planner:
    """Choose among drafters and cut their trees, to maximize expected tokens per second.

    costs:        of the target's steps.
    capabilities: of the target; the cost of a row depends on how it is stepped.
    max_depth:    maximum length of a path.
    clock:        returns seconds; times the drafters.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        costs: StepCosts,
        capabilities: Capabilities = Capabilities(),  # noqa: B008  (frozen)
        *,
        max_depth: int = CAP,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        require_at_least(1, max_depth)
        self.name = "|".join(dict.fromkeys(source.drafter.name for source in sources))
        self.needs = Needs.of(*(source.drafter for source in sources))
        self._sources = list(sources)
        self._costs = costs
        self._forked = capabilities.forked_trees
        self._min_width = capabilities.min_width
        self._max_depth = max_depth
        self._clock = clock
        self._acceptance = [Acceptance(source.drafter.prior) for source in sources]
        self._states: dict[int, TextState] = {}
        self._last_width = 0

    def draft(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        rounds = [self._begin(request, len(requests)) for request in requests]
        for i, source in enumerate(self._sources):
            if source.costs is None:
                self._try(i, rounds)
        for i, source in enumerate(self._sources):
            if source.costs is not None:
                self._ask(i, [r for r in rounds if self._seems_to_pay(i, r)])
        for r in rounds:
            r.state.asked = r.asked
        if len(rounds) == 1 or not any(len(r.best.tree) for r in rounds):  # nothing shares the step's width
            return [r.best.tree for r in rounds]
        return self._admitted(rounds)

    def _admitted(self, rounds: Sequence[RowPlan]) -> list[TokenTree]:
        """Return the rows' trees, cut to the nodes that pay in the step that they share."""
        bids = []
        for r in rounds:
            tree = r.best.tree
            probabilities = r.state.local[r.asked].path_probabilities(tree) if r.asked is not None else ()
            bids.append(Bid(tree, probabilities, whole=tree.probs is not None or r.state.repeatable))
        context = sum(len(r.request.context) for r in rounds) // len(rounds)
        curve = self._costs.curve(context, WIDEST)
        prefill = rounds[0].request.num_prefill_tokens
        return admit(bids, curve, prefill, forked=self._forked, min_width=self._min_width)

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        for source in self._sources:
            source.drafter.prefilled(events)

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
        """Learn the cost of a step from the outcome of any of its rows."""
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

    def _begin(self, request: DraftRequest, num_rows: int) -> RowPlan:
        """Return the row's plan with its cost curve: the step's seconds by the row's own new tokens."""
        state = self._states.get(request.key)
        if state is None:
            state = self._states[request.key] = self._open(request)
        context, depth, others = len(request.context), min(request.plan.depth, self._max_depth), 0
        if not state.repeatable:
            # Each other row has at least its root token, padded to the minimum width.
            others = min((num_rows - 1) * self._min_width + request.num_prefill_tokens, WIDEST)
        curve = state.costs.curve(context, others + max(1 + depth, self._min_width))
        if not state.repeatable and 0 < self._last_width <= WIDEST:
            change = state.costs.change_seconds(context)
            curve = curve + change
            curve[self._last_width : self._last_width + 1] -= change
        curve = np.concatenate([[0.0], curve[1 + others :]])
        curve[1 : self._min_width] = curve[self._min_width]
        curve = curve[: depth + 2]
        request = replace(request, plan=Plan(depth))
        return RowPlan(request, state, curve, seconds_per_token=float(curve[1]))

    def _open(self, request: DraftRequest) -> TextState:
        params = request.sampler.params
        repeatable = not params.greedy and params.seed is not None
        sources = self._sources
        costs, draft_costs, acceptance = self._costs, [s.costs for s in sources], self._acceptance
        if repeatable:
            costs = costs.fixed()
            draft_costs = [c and c.fixed() for c in draft_costs]
            acceptance = [Acceptance(s.drafter.prior) for s in sources]
        return TextState(
            costs,
            draft_costs,
            [Local(shared) for shared in acceptance],
            [Forecast(s.reach) for s in sources],
            repeatable,
            len(request.context),
        )

    def _try(self, which: int, rounds: Sequence[RowPlan]) -> None:
        """Ask a drafter without a model, and keep its cut trees where they lower the seconds per token."""
        trees = self._sources[which].drafter.propose([r.request for r in rounds])
        for r, tree in zip(rounds, trees, strict=True):
            probabilities = r.state.local[which].path_probabilities(tree)
            cut = best_cut(tree, probabilities, r.curve, forked=self._forked)
            if cut is not None and cut.seconds_per_token(r.curve) < r.seconds_per_token:
                r.best, r.asked, r.seconds_per_token = cut, which, cut.seconds_per_token(r.curve)

    def _seems_to_pay(self, which: int, r: RowPlan) -> bool:
        """Return whether a costly drafter's forecast beats the round's best, or it is due for a probe.

        Sets the plan of the row's request if so.
        """
        forecast = r.state.forecasts[which]
        depth = len(r.curve) - 2
        if depth < 1:
            return False
        behind = self._sources[which].drafter.behind(r.request)
        forecast.begin(whole=behind in (1, len(r.request.context)))  # 1: the rest is read already
        reading, each = self._draft_seconds(which, r, behind)
        first = each + reading / rounds_to_come(r)
        tokens = 1.0 + np.cumsum(forecast.reach[:depth])
        seconds = first + each * np.arange(depth) + r.curve[2:]
        seconds_per_token = float(np.min(seconds / tokens))
        if seconds_per_token < r.seconds_per_token:
            forecast.paid()
            r.seconds_per_token = seconds_per_token
            r.request = replace(r.request, plan=Plan(depth, stop=self._gate(which, r, each)))
            return True
        depth = min(depth, _PROBE_DEPTH)
        probe = reading + depth * each + float(r.curve[1 + depth] - r.curve[1])
        if not forecast.probes(probe / float(r.curve[1]), wanted=r.asked is None):
            return False
        stop = PathGate(r.state.local[which], (0.0,) * depth)
        r.request = replace(r.request, plan=Plan(depth, stop=stop))
        return True

    def _draft_seconds(self, which: int, r: RowPlan, behind: int) -> tuple[float, float]:
        """Return the seconds to read the drafter's unread tokens, and the seconds per drafted token."""
        costs, target = r.state.draft_costs[which], r.state.costs
        assert costs is not None  # asked of costly drafters only
        context = len(r.request.context)
        if not costs.known:
            costs.assume(UNKNOWN_COST * target.step(1, context))
        each = costs.step(1, context)
        # Seconds mean nothing beside a target whose costs are ratios yet: assume the draft's step there too.
        unit = 1.0 if target.known or not costs.known else UNKNOWN_COST * target.step(1, context) / each
        return unit * (costs.step(behind, context) - each), unit * each

    def _gate(self, which: int, r: RowPlan, each: float) -> PathGate:
        """Return the stop rule of a draft: a further node costs a draft step and a wider target step."""
        reach = r.state.forecasts[which].reach
        least = [0.0]
        for depth in range(1, len(r.curve) - 2):
            onward = reach[depth] / reach[depth - 1]
            least.append((each + r.curve[depth + 2] - r.curve[depth + 1]) / (r.seconds_per_token * onward))
        return PathGate(r.state.local[which], tuple(least))

    def _ask(self, which: int, rounds: Sequence[RowPlan]) -> None:
        """Ask a costly drafter; its time is spent then, so only verification still has to pay."""
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
            if costs is not None and not state.repeatable and read <= 2:  # else the time was mostly prefill
                costs.observe(1, len(r.request.context), spent / max(tree.depths()))
            probabilities = state.local[which].path_probabilities(tree)
            state.forecasts[which].learn(_spine(tree, probabilities))
            worth = r.seconds_per_token
            cut = best_cut(tree, probabilities, r.curve, forked=self._forked, seconds_per_token=worth)
            assert cut is not None  # it is a chain no deeper than the curve
            # Drawn tokens must be verified: dropping them for their ids would change the text's distribution.
            if tree.probs is not None or cut.value(r.curve, worth) > r.best.value(r.curve, worth):
                r.best, r.asked = cut, which


def _spine(tree: TokenTree, probabilities: Sequence[float]) -> list[float]:
    """Return [depth] the best path probability at each depth of the tree."""
    best: dict[int, float] = {}
    for depth, probability in zip(tree.depths(), probabilities, strict=True):
        best[depth] = max(best.get(depth, 0.0), probability)
    return [best[depth] for depth in sorted(best)]
