"""Decide whether a drafter with a model is asked in a round, and how far it drafts. Knows no device.

Its drafts cost time before their worth is known. So their value is forecast from the confidences that it had
in this text and in others (`Forecast`, `Lookahead`). A drafter that does not seem to pay is probed now and
then, for a bounded share of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from specport.core.planning.lengths import Lengths
from specport.core.planning.row_plan import DraftValue, PathGate, RowPlan, Source, count_call
from specport.core.planning.width_changes import WidthChanges
from specport.core.ports import Plan
from specport.core.tree import TokenTree

_PROBE_DEPTH = 2
_NEVER = 1e6  # seconds of a step that is not allowed
# Rounds of a text in which a draft's value is worked out each time, and rounds that it is kept for later.
_NEW, _KEPT = 8, 4
UNKNOWN_COST = 0.35  # assumed step of a draft model that was never timed, in plain steps of the target


class ModelDraft:
    """Plan the drafts of one drafter with a model.

    which: its index in the lists of `TextState`. clock: returns seconds; times the drafts.
    """

    def __init__(self, which: int, source: Source, clock: Callable[[], float]) -> None:
        self._which = which
        self._drafter = source.drafter
        self._assumed = UNKNOWN_COST if source.assumed is None else source.assumed
        self._clock = clock
        self._width = 0  # of the last parallel pass

    def seems_to_pay(self, r: RowPlan, changes: WidthChanges, lengths: Lengths) -> bool:
        """Return whether the forecast beats the round's best candidate, or the drafter is due for a probe.

        Sets the plan of the row's request if so.
        """
        which, forecast = self._which, r.state.forecasts[self._which]
        depth = r.request.plan.depth
        if passes := self._drafter.parallel:
            depth = min(depth, passes.depth)
        if depth < 1:
            return False
        behind = self._drafter.behind(r.request)
        forecast.begin(whole=behind in (1, len(r.request.context)))  # 1: the rest is read already
        drafting = self._seconds(r, 1, depth)
        reading = max(0.0, self._seconds(r, behind, 1)[0] - drafting[0])
        found = self._gain(r, changes, drafting)
        value = found.gain + r.worth - float(r.curve[1])
        if lengths.pays(r, value - r.value, reading):
            forecast.paid()
            r.curves[which] = r.curve[: depth + 2] + found.charges
            r.request = replace(r.request, plan=self._plan(r, found.least))
            return True
        depth = min(depth, _PROBE_DEPTH)
        probe = reading + float(drafting[depth - 1]) + float(r.curve[1 + depth] - r.curve[1])
        if not forecast.probes(probe / float(r.curve[1]), wanted=r.asked is None):
            return False
        r.request = replace(r.request, plan=self._plan(r, (0.0,) * depth))
        return True

    def draft(self, rounds: Sequence[RowPlan]) -> list[TokenTree]:
        """Return the trees of these rows, and learn what they cost and how confident the drafter is."""
        behind = [self._drafter.behind(r.request) for r in rounds]
        began = self._clock()
        trees = self._drafter.propose([r.request for r in rounds])
        whole = self._clock() - began
        count_call(self._drafter.name, rounds, whole, behind)
        spent = whole / len(rounds)
        for r, tree, read in zip(rounds, trees, behind, strict=True):
            if not len(tree):
                continue
            depth = r.request.plan.depth if self._drafter.parallel else max(tree.depths())
            r.draft_s = float(self._seconds(r, 1, depth)[-1])
            self._time(r, read, depth, spent)
            r.state.forecasts[self._which].learn(
                _spine(tree, r.state.local[self._which].path_probabilities(tree))
            )
        return trees

    def _time(self, r: RowPlan, read: int, depth: int, seconds: float) -> None:
        """Learn the costs of steps from a draft of `depth` tokens behind `read` ones of the text."""
        costs, context = r.state.draft_costs[self._which], len(r.request.context)
        passes = self._drafter.parallel
        width, changed, most = 1, False, 2
        if passes:
            width, most = passes.width(read, depth, context), 1 + passes.depth
            changed, self._width = width != self._width, width
        # A step that read more was mostly prefill. Before the target's first step an assumed cost has no
        # unit, to which a timing could be compared.
        if costs is None or r.state.repeatable or read > most or not (r.state.costs.known or costs.known):
            return
        costs.observe(width, context, seconds if passes else seconds / depth, changed=changed)

    def _plan(self, r: RowPlan, least: tuple[float, ...]) -> Plan:
        return Plan(len(least), stop=PathGate(r.state.local[self._which], least))

    def _gain(self, r: RowPlan, changes: WidthChanges, drafting: NDArray[np.float64]) -> DraftValue:
        """Return the value of a draft over plain decoding.

        It changes slowly, so it is worked out anew only now and then once the text has shown what it is like.

        drafting: [depth] seconds to draft that many tokens.
        """
        state, depth = r.state, len(drafting)
        held = state.values.get(self._which)
        age = state.num_rounds - held.since if held is not None else 0
        if held is not None and age < _KEPT and state.num_rounds > _NEW and len(held.charges) == depth + 2:
            return held
        charges = r.change * changes.habits(r.widths[: depth + 2]) if r.change else np.zeros((1, depth + 2))
        curves = r.curve[: depth + 2] + charges
        lookahead = state.forecasts[self._which].lookahead()
        if not self._drafter.parallel:
            value = lookahead.value(curves, r.worth, each=float(drafting[0]))
            least, habit = value.least, value.choice
        else:
            # One pass drafts all tokens, so its length is chosen first; the confidences choose what is kept.
            habit = lookahead.value(curves, r.worth).choice
            lengths = np.arange(1, depth + 1)[:, None]
            bounded = np.where(np.arange(depth + 2) <= 1 + lengths, curves[habit], _NEVER)
            value = lookahead.value(bounded, r.worth, before=drafting)
            least = value.least[: value.choice + 1]
        plain = r.worth - float(r.curve[1])
        found = DraftValue(value.whole - plain, least, charges[habit], state.num_rounds)
        state.values[self._which] = found
        return found

    def _seconds(self, r: RowPlan, behind: int, depth: int) -> NDArray[np.float64]:
        """Return [depth] the seconds to draft 1, 2, ... tokens. behind: number of tokens to read before."""
        costs, target = r.state.draft_costs[self._which], r.state.costs
        assert costs is not None  # it has a model
        context = len(r.request.context)
        if not costs.known:
            costs.assume(self._assumed * target.step(1, context))
        # Seconds mean nothing beside a target whose costs are ratios yet: assume the draft's step there too.
        unit = 1.0
        if costs.known and not target.known:
            unit = self._assumed * target.step(1, context) / costs.step(1, context)
        if passes := self._drafter.parallel:
            widths = [passes.width(behind, 1 + k, context) for k in range(depth)]
            seconds = np.asarray([costs.step(width, context) for width in widths], dtype=np.float64)
        else:
            first, each = costs.step(behind, context), costs.step(1, context)
            seconds = first + each * np.arange(depth, dtype=np.float64)
        return unit * seconds


def _spine(tree: TokenTree, probabilities: Sequence[float]) -> list[float]:
    """Return [depth] the confidences along the likeliest of the deepest paths."""
    if not tree.confidence:
        return []
    depths = tree.depths()
    deepest = max(range(len(tree)), key=lambda node: (depths[node], probabilities[node]))
    return [tree.confidence[node] for node in tree.path(deepest)]
