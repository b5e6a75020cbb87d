"""The planner's data: a drafter with its costs, the state of a sequence, and one sequence's round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from specport.core.estimates.acceptance_rates import Local
from specport.core.estimates.forecast import Forecast
from specport.core.planning.step_costs import StepCosts
from specport.core.planning.tree_pruning import Candidate, Curve
from specport.core.planning.worth import Worth
from specport.core.ports import Drafted, DraftRequest, PlannedDrafter


@dataclass(frozen=True)
class Source:
    """Hold a drafter and its costs.

    costs: of its model's steps; None = drafting takes negligible time.
    reach: measured acceptance probability of its node at depth 1, 2, ...; () = unknown.
    assumed: its model's step in plain steps of the target, until one is timed; None = unknown.
    constrained: whether it drafts in texts under a constraint only. It is no part of a policy's name.
    """

    drafter: PlannedDrafter
    costs: StepCosts | None = None
    reach: tuple[float, ...] = ()
    assumed: float | None = None
    constrained: bool = False


@dataclass(frozen=True)
class PathGate:
    """Continue a draft while the next token is likely enough to pay.

    least: [depth] smallest path probability at which one more token pays.
    """

    local: Local
    least: tuple[float, ...]
    top_k: ClassVar[int] = 0

    def goes_on(self, token: Drafted) -> bool:
        depth = token.position
        return depth < len(self.least) and self.local.path_probability(token.confidences) >= self.least[depth]


@dataclass(frozen=True)
class DraftValue:
    """Hold what a draft with a model is worth in a text.

    gain:    seconds that a round with the best draft saves over a plain one.
    least:   as for `PathGate`; its length is the length of the draft.
    charges: [width] seconds that widths of the step cost for changing them.
    since:   round in which it was worked out.
    """

    gain: float
    least: tuple[float, ...]
    charges: NDArray[np.float64]
    since: int


@dataclass
class TextState:
    """Hold the planner's state of one sequence.

    costs, draft_costs: of the target and of each drafter; for a repeatable text, copies that do not learn.
    local, forecasts:   of each drafter: acceptance in this text, and the forecast.
    repeatable:         the text is sampled with a seed.
    num_tokens, num_rounds: of the answer so far.
    values:             of drafters with a model, by their index.
    asked:              index of the drafter whose tree is being verified; None = an empty tree.
    spent:              modelled time of the round, in plain steps.
    """

    costs: StepCosts
    draft_costs: list[StepCosts | None]
    local: list[Local]
    forecasts: list[Forecast]
    repeatable: bool
    num_prompt_tokens: int
    worth: Worth
    num_tokens: int = 1
    num_rounds: int = 0
    values: dict[int, DraftValue] = field(default_factory=dict)
    asked: int | None = None
    spent: float = 0.0


@dataclass
class RowPlan:
    """Hold one request's round: the best candidate so far, its drafter, and its value.

    curve:   [width] seconds of the step by this row's new tokens, with the other rows fixed.
    free:    the same with the cost of changing the step's width, for plain decoding and for trees that are
             drafted now and then.
    curves:  the same for the drafts of a drafter with a model, by its index.
    widths:  [width] new tokens of the step, those of other rows and padding included.
    change:  seconds of a change of width.
    worth:   seconds that a token is worth.
    value:   of the best candidate: what its tokens are worth, less the seconds of its step.
    asked:   index of the best candidate's drafter; None = nothing is drafted.
    draft_s: modelled seconds of drafting.
    """

    request: DraftRequest
    state: TextState
    curve: Curve
    free: Curve
    widths: NDArray[np.int64]
    change: float
    worth: float
    value: float
    curves: dict[int, Curve] = field(default_factory=dict)
    best: Candidate = field(default_factory=Candidate)
    asked: int | None = None
    draft_s: float = 0.0


def count_call(drafter: str, rounds: Sequence[RowPlan], seconds: float, behind: Sequence[int] = ()) -> None:
    """Count a drafter's call for these rows. behind: tokens that its model had to read for each."""
    for i, r in enumerate(rounds):
        if r.request.counts is not None:
            r.request.counts.asked(drafter, seconds, behind[i] if behind else 0)
