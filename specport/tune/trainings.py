"""What can be trained on the way, how much text it takes, and how long. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from specport.core.planning.step_costs import StepCosts

DEPTH = 6  # tokens that a parallel draft proposes in a pass


@dataclass(frozen=True)
class Training:
    """Describe a kind of draft that is trained on text which the target writes.

    name:    of the folder. what: for people.
    least, most: tokens of text.
    reading: time to learn from a token of text, in times that the target takes to read one.
    """

    name: str
    what: str
    least: int
    most: int
    reading: float

    def token_s(self, costs: StepCosts) -> float:
        """Return the seconds for a token of text: to write it, and to learn from it."""
        widest = costs.widths[-1]
        writing = costs.step(min(8, widest), 256) / min(8, widest)
        return writing + self.reading * costs.step(widest, 256) / widest

    def tokens(self, costs: StepCosts | None, seconds: float) -> int:
        """Return how much text can be learnt from in this time, `most` at most; 0 where costs are unknown."""
        return 0 if costs is None else min(self.most, int(seconds / self.token_s(costs)))


# Hidden states are read at answers and prompts. Then four passes over the answers train a hundredth of the
# target's weights, some two rows a token, in f32.
HEAD = Training("head", "a draft head on the target's hidden states", 20_000, 150_000, 4.0)
# Three rows a token, forward and backward, in f32, of a model as large as the target at most.
PARALLEL = Training(f"parallel{DEPTH}", f"a draft of {DEPTH} tokens a pass", 20_000, 200_000, 36.0)
