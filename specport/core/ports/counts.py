"""Counters of what each drafter, and each tier of verification, brought to one sequence. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

READING_TOKENS = 16  # a drafter that is this far behind reads a prompt: the time of its call is no drafting


@dataclass
class DrafterCounts:
    """Hold the counters of one drafter in one sequence. Rows of a batch share times, as in `Metrics`.

    calls:     times that it was asked to draft, in vain or not.
    seconds:   of these calls. reading_s: of those among them that first read READING_TOKENS or more.
    rounds:    steps that verified its draft, with `drafted` tokens, of which `accepted` were.
    verify_s:  seconds of these steps.
    """

    calls: int = 0
    seconds: float = 0.0
    reading_s: float = 0.0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    verify_s: float = 0.0


@dataclass
class DraftingCounts:
    """Hold the counters of all drafters in one sequence; policies and the loop write to it.

    by:      name of a drafter -> its counters.
    chosen:  the drafter whose draft is to be verified; "" = none.
    rounds, plain_s: rounds for which the policy knew what a plain step would cost, and the sum of that.
    """

    by: dict[str, DrafterCounts] = field(default_factory=dict)
    chosen: str = ""
    rounds: int = 0
    plain_s: float = 0.0

    def asked(self, drafter: str, seconds: float, behind: int = 0) -> None:
        """Count one call of a drafter. behind: tokens that its model had to read first."""
        own = self.by.get(drafter)
        if own is None:
            own = self.by[drafter] = DrafterCounts()
        own.calls += 1
        own.seconds += seconds
        if behind >= READING_TOKENS:
            own.reading_s += seconds

    def verified(self, drafted: int, accepted: int, seconds: float) -> None:
        """Count a verified draft of the drafter that was chosen."""
        own = self.by.get(self.chosen)
        if own is None:
            own = self.by[self.chosen] = DrafterCounts()
        own.rounds += 1
        own.drafted += drafted
        own.accepted += accepted
        own.verify_s += seconds
        self.chosen = ""


@dataclass
class TierCounts:
    """Hold the counters of tiered verification in one sequence, after its prompt, or in one round.

    slim_steps, full_calls: steps of the slim verifier and of the target, those to catch up included.
    accepted, regenerated:  tokens that the slim verifier accepted of a draft, and of its own choice.
    escalated:   tokens that the target chose or accepted.
    open_rounds: rounds whose draft the slim verifier accepted whole; they have no token behind it.
    slim_s, full_s: seconds of the steps. Rows of a batch share them.
    """

    slim_steps: int = 0
    full_calls: int = 0
    accepted: int = 0
    regenerated: int = 0
    escalated: int = 0
    open_rounds: int = 0
    slim_s: float = 0.0
    full_s: float = 0.0

    def add(self, other: TierCounts) -> None:
        """Add the counters of a round."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
