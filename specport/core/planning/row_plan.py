"""The planner's data: a drafter with its costs, the state of a sequence, and one sequence's round."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from specport.core.planning.acceptance_rates import Local
from specport.core.planning.forecast import Forecast
from specport.core.planning.step_costs import StepCosts
from specport.core.planning.tree_pruning import Candidate, Curve
from specport.core.ports import Drafted, DraftRequest, PlannedDrafter

# A text is expected to continue for as many tokens as its output has so far, plus this many: a summary or a
# correction has a few sentences at least, the answer of a search often a few words.
_LINDY = 32
_TOKENS_A_ROUND = 2.5


@dataclass(frozen=True)
class Source:
    """Hold a drafter and its costs.

    costs: of its model's steps; None = drafting takes negligible time.
    reach: measured acceptance probability of its node at depth 1, 2, ...; () = unknown.
    """

    drafter: PlannedDrafter
    costs: StepCosts | None = None
    reach: tuple[float, ...] = ()


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


@dataclass
class TextState:
    """Hold the planner's state of one sequence.

    costs, draft_costs: of the target and of each drafter; for a repeatable text, copies that do not learn.
    local, forecasts:   of each drafter: acceptance in this text, and the forecast.
    repeatable:         the text is sampled with a seed.
    """

    costs: StepCosts
    draft_costs: list[StepCosts | None]
    local: list[Local]
    forecasts: list[Forecast]
    repeatable: bool
    num_prompt_tokens: int
    asked: int | None = None  # whose tree is being verified


@dataclass
class RowPlan:
    """Hold one request's round: the best candidate so far, its drafter, and its expected seconds per token.

    curve: [width] seconds of the step by this row's new tokens, with the other rows fixed.
    asked: index of the best candidate's drafter; None = nothing is drafted.
    """

    request: DraftRequest
    state: TextState
    curve: Curve
    seconds_per_token: float
    best: Candidate = field(default_factory=Candidate)
    asked: int | None = None


def rounds_to_come(row: RowPlan) -> float:
    """Return the expected number of remaining rounds, over which the cost of reading a context is spread."""
    written = len(row.request.context) - row.state.num_prompt_tokens
    return max(1.0, min(row.request.num_left, _LINDY + written) / _TOKENS_A_ROUND)
