"""The record of a run: one line of JSON for each step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from specport.errors import ModelError
from specport.models.atomic import write_atomically
from specport.models.os_errors import cause
from specport.outside import Format
from specport.outside.numbers import Amount, Count, Share

NAME = "steps.jsonl"


@dataclass(frozen=True)
class Step:
    """Hold what happened in one step.

    reward:   mean over its samples. entropy: mean of -log-probability of their tokens, in nats.
    tokens:   of all samples. drafts, drafted, accepted: as in `Rollouts`.
    rollout_s, plain_s: seconds of the rollouts, and of as many tokens of the same prompts without drafts;
              None where that was not measured.
    learn_s, update_s: seconds of the learner, and of the new weights in the engine.
    gap, most_gap: as in `Update`.
    """

    step: Count
    reward: Share
    entropy: Amount
    tokens: Count
    drafts: Count
    drafted: Count
    accepted: Count
    rollout_s: Amount
    plain_s: Amount | None
    learn_s: Amount
    update_s: Amount
    gap: Amount
    most_gap: Amount

    @property
    def acceptance_rate(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Return the tokens per drafted verify step, bonus token included."""
        return 1.0 + self.accepted / self.drafts if self.drafts else 1.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.rollout_s if self.rollout_s else 0.0

    @property
    def speed_up(self) -> float | None:
        """Return the time without drafts in that with drafts; None where it was not measured."""
        return self.plain_s / self.rollout_s if self.plain_s is not None and self.rollout_s else None


_LINES = Format(Step, "a step of a run", "name the folder of a run, or start it anew with another --out")


def read(folder: Path) -> list[Step]:
    """Return the steps of a run; [] where none is there. Raises ModelError for a file that is none."""
    path = folder / NAME
    return [*_LINES.lines(path)] if path.exists() else []


def write(folder: Path, steps: Sequence[Step]) -> None:
    """Write the record anew, so that it never has half a line. Raises ModelError."""
    try:
        write_atomically(folder / NAME, "".join(json.dumps(asdict(step)) + "\n" for step in steps))
    except OSError as error:
        message, hint = cause(error)
        raise ModelError(f"cannot write {folder / NAME}: {message}", hint) from error
