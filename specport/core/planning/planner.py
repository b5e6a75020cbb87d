"""The planner: draft only tokens that pay by measured cost. Knows no device and no model.

A token is worth the time that decoding one takes at present (`Worth`). In each round the planner maximizes
what the expected tokens are worth, less the seconds of drafting and verification. Drafters without a model
(n-gram) draft first, and their trees are cut to the nodes that pay. A draft model is asked where its forecast
is better (`ModelDraft`), and stops where going on would not pay. Nothing is drafted when nothing pays.

Costs come from `StepCosts`, refined by every step. Probabilities come from `Acceptance` by drafter, by
confidence and by depth, with a correction for each sequence. A seeded sampled text must be repeatable, so its
plans depend neither on the clock nor on other texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from specport.core.estimates.acceptance_rates import Acceptance, Local
from specport.core.estimates.forecast import Forecast, Mix
from specport.core.planning.admission import Bid, admit
from specport.core.planning.constrained import held
from specport.core.planning.lengths import Lengths
from specport.core.planning.model_draft import ModelDraft
from specport.core.planning.row_plan import RowPlan, Source, TextState, count_call
from specport.core.planning.step_costs import MAX_WIDTH, WIDEST, StepCosts
from specport.core.planning.tree_pruning import best_cut, row_widths
from specport.core.planning.width_changes import WidthChanges
from specport.core.planning.worth import Worth
from specport.core.policies.length_rules import CAP, require_at_least
from specport.core.ports import Capabilities, DraftRequest, Needs, Outcome, Plan, Prefilled
from specport.core.tree import TokenTree


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
        # A draft's assumed costs follow the target's: the same object would follow itself.
        sources = [replace(s, costs=costs.fixed()) if s.costs is costs else s for s in sources]
        self.name = "|".join(dict.fromkeys(s.drafter.name for s in sources if not s.constrained))
        self.needs = Needs.of(*(source.drafter for source in sources))
        self._sources = sources
        self._costs = costs
        self._tree, self._forked = capabilities.tree, capabilities.forked_trees
        self._min_width = capabilities.min_width
        self._max_depth, self._clock = max_depth, clock
        self._acceptance = [Acceptance(source.drafter.prior) for source in sources]
        self._mixes = [Mix(source.reach, source.drafter.prior) for source in sources]
        self._models = {
            i: ModelDraft(i, source, clock) for i, source in enumerate(sources) if source.costs is not None
        }
        self._states: dict[int, TextState] = {}
        self._lengths = Lengths()
        self._changes = WidthChanges(WIDEST)

    def draft(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        rounds = [self._begin(request, len(requests)) for request in requests]
        for i, source in enumerate(self._sources):
            asked = [r for r in rounds if r.request.sampler.constraint or not source.constrained]
            if source.costs is None and asked:
                began = self._clock()
                proposed = source.drafter.propose([r.request for r in asked])
                count_call(source.drafter.name, asked, self._clock() - began)
                self._offer(i, asked, proposed)
        for i, model in self._models.items():
            asked = [r for r in rounds if model.seems_to_pay(r, self._changes, self._lengths)]
            if asked:
                self._offer(i, asked, model.draft(asked))
        trees = [r.best.tree for r in rounds]
        if len(rounds) > 1 and any(len(tree) for tree in trees):  # they share the step's width
            trees = self._admitted(rounds)
        for r, tree in zip(rounds, trees, strict=True):
            r.state.asked = r.asked
            width = int(row_widths(tree, range(len(tree)), forked=self._forked)[-1]) if len(tree) else 1
            r.state.spent = (r.draft_s + float(r.curve[width])) / float(r.curve[1])
            self._count_choice(r, tree)
        return trees

    def _count_choice(self, r: RowPlan, tree: TokenTree) -> None:
        counts = r.request.counts
        if counts is None:
            return
        counts.chosen = self._sources[r.asked].drafter.name if len(tree) and r.asked is not None else ""
        if r.state.costs.known:
            counts.rounds += 1
            counts.plain_s += float(r.curve[1])

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
            if state is not None:
                state.num_tokens += 1 + len(outcome.path)
                state.num_rounds += 1
                state.worth.learn(state.spent, 1 + len(outcome.path))
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
        changed = self._changes.last not in (0, width)
        self._costs.observe(width, outcome.context, outcome.verify_s, changed=changed)
        self._changes.observe(width)

    def forget(self, key: int) -> None:
        state = self._states.pop(key, None)
        if state is not None:
            self._lengths.learn(state.num_prompt_tokens, state.num_tokens)
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
        nodes = max(depth, min(request.max_nodes, MAX_WIDTH - 1)) if self._tree else depth
        curve = state.costs.curve(context, others + max(1 + nodes, self._min_width))
        curve = np.concatenate([[0.0], curve[1 + others :]])
        curve[1 : self._min_width] = curve[self._min_width]
        curve = curve[: nodes + 2]
        widths, change = others + np.maximum(np.arange(nodes + 2), self._min_width), 0.0
        free = curve
        if not state.repeatable:
            change = state.costs.change_seconds(context)
            free = curve + change * self._changes.charges(widths)
        request = replace(request, plan=Plan(depth))
        shared = 1 if state.repeatable else num_rows  # a step of several rows brings a token for each
        worth = state.worth.plain_steps * float(curve[1]) / shared
        return RowPlan(request, state, curve, free, widths, change, worth, value=worth - float(free[1]))

    def _open(self, request: DraftRequest) -> TextState:
        params = request.sampler.params
        repeatable = not params.greedy and params.seed is not None
        sources = self._sources
        costs, draft_costs, acceptance = self._costs, [s.costs for s in sources], self._acceptance
        mixes = self._mixes
        if repeatable:
            costs = costs.fixed()
            draft_costs = [c and c.fixed() for c in draft_costs]
            acceptance = [Acceptance(s.drafter.prior) for s in sources]
            mixes = [Mix(s.reach, s.drafter.prior) for s in sources]
        local = [Local(shared) for shared in acceptance]
        return TextState(
            costs,
            draft_costs,
            local,
            [Forecast(mix, own) for mix, own in zip(mixes, local, strict=True)],
            repeatable,
            len(request.context),
            Worth.at_first(free=any(s.costs is None and not s.constrained for s in sources)),
        )

    def _offer(self, which: int, rounds: Sequence[RowPlan], trees: Sequence[TokenTree]) -> None:
        """Keep the best part of each tree where it is worth more than the row's best candidate."""
        for r, proposed in zip(rounds, trees, strict=True):
            tree = held(r.request, proposed)
            probabilities = r.state.local[which].path_probabilities(tree)
            curve = r.curves.get(which, r.free)
            cut = best_cut(tree, probabilities, curve, forked=self._forked, seconds_per_token=r.worth)
            if cut is None:
                continue
            value = cut.value(curve, r.worth)
            # A model's drawn tokens must be verified: to drop them for their ids would change the text's law.
            if value > r.value or (tree.probs is not None and which in self._models):
                r.best, r.asked, r.value = cut, which, value
