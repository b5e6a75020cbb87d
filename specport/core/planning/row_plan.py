"""The planner's data: a drafter with its costs, the state of a sequence, and one sequence's round."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from specport.core.planning.acceptance_rates import Local
from specport.core.planning.forecast import Forecast
from specport.core.planning.lookahead import Lookahead
from specport.core.planning.step_costs import StepCosts
from specport.core.planning.tree_pruning import Candidate, Curve
from specport.core.ports import Drafted, DraftRequest, PlannedDrafter

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


_WORTH_DECAY, _WORTH_WEIGHT = 0.93, 4.0


@dataclass
class Worth:
    """Estimate what a token of a text is worth: the time that decoding one takes, in plain steps.

    A draft pays where it brings its tokens for less. Plain decoding is always possible, so a token is never
    worth more than a plain step.
    """

    steps: float = _WORTH_WEIGHT
    tokens: float = _WORTH_WEIGHT

    @classmethod
    def starting(cls, plain_steps: float) -> Worth:
        return cls(plain_steps * _WORTH_WEIGHT, _WORTH_WEIGHT)

    @property
    def plain_steps(self) -> float:
        return min(1.0, self.steps / self.tokens)

    def learn(self, steps: float, num_tokens: int) -> None:
        """Learn from a round. steps: its modelled time, in plain steps."""
        self.steps = _WORTH_DECAY * self.steps + steps
        self.tokens = _WORTH_DECAY * self.tokens + num_tokens


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
    worth: Worth
    lookaheads: dict[int, tuple[int, Lookahead]] = field(default_factory=dict)
    num_tokens: int = 1
    asked: int | None = None  # whose tree is being verified
    spent: float = 0.0  # modelled seconds of the round, in plain steps


@dataclass
class RowPlan:
    """Hold one request's round: the best candidate so far, its drafter, and its value in seconds.

    curve: [width] seconds of the step by this row's new tokens, with the other rows fixed.
    asked: index of the best candidate's drafter; None = nothing is drafted.
    """

    request: DraftRequest
    state: TextState
    curve: Curve
    free: Curve
    widths: NDArray[np.int64]
    change: float
    worth: float
    curves: dict[int, Curve] = field(default_factory=dict)
    best: Candidate = field(default_factory=Candidate)
    value: float = 0.0
    asked: int | None = None
    draft_s: float = 0.0


class Lengths:
    """Learn how long answers are, to spread the cost of reading a context over what is still to come."""

    _PRIOR = (16, 48, 96, 192, 384)
    _KEPT = 16  # latest answers

    def __init__(self) -> None:
        self._known: deque[int] = deque(maxlen=self._KEPT)

    def learn(self, num_tokens: int) -> None:
        """Learn from an answer that has ended."""
        self._known.append(num_tokens)

    def rounds_to_come(self, row: RowPlan) -> float:
        """Return the expected number of remaining rounds of a text."""
        written = len(row.request.context) - row.state.num_prompt_tokens
        known = () if row.state.repeatable else self._known
        left = [n - written for n in (*self._PRIOR, *known) if n > written]
        # An answer that is longer than all others is expected to go on for as long again.
        expected = statistics.fmean(min(n, row.request.num_left) for n in left or [written])
        return max(1.0, expected / _TOKENS_A_ROUND)
