"""Policies: how much to draft in the next round. One instance serves one sequence.

`Planned` leaves it all to the planner; the others are the published answers to the same question. A
drafter that asks no stop rule (n-gram) drafts as deep as the plan says: under `Fixed` and `Heuristic`
that is what the policy means, under `ConfidenceThreshold` and `Classified` it is the cap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from specport.core.planning.stop_classifier import DEPTH
from specport.core.ports import Drafted, Outcome, Plan, Policy, StopRule
from specport.errors import InvalidInput

# Most tokens that a growing plan drafts (num_assistant_tokens of transformers' dynamic speculation).
CAP = 20
CLASSIFIER = "classifier"  # the policy that needs a trained one
# (draft probability, matched?) pairs that an adapting threshold looks back on, and the fewest it
# learns from. transformers keeps them all; a window follows the text and bounds the cost.
WINDOW = 500
MIN_SAMPLES = 6


@dataclass(frozen=True)
class Threshold:
    """Stop behind a token whose probability is below `least` (Assisted Generation, transformers)."""

    least: float
    top_k: ClassVar[int] = 0

    def goes_on(self, token: Drafted) -> bool:
        return token.confidences[-1] >= self.least


@dataclass(frozen=True)
class Planned:
    """As much as pays: the `Planner` that drafts decides. The default.

    num_draft_tokens: most tokens of a path.
    """

    num_draft_tokens: int = CAP

    def __post_init__(self) -> None:
        _require_at_least(1, self.num_draft_tokens)

    def plan(self) -> Plan:
        return Plan(self.num_draft_tokens)

    def observe(self, outcome: Outcome) -> None:
        pass


@dataclass(frozen=True)
class Fixed:
    """The same plan in every round. branches: see `Plan`."""

    num_draft_tokens: int = 5
    branches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_at_least(0, self.num_draft_tokens)

    def plan(self) -> Plan:
        return Plan(self.num_draft_tokens, self.branches)

    def observe(self, outcome: Outcome) -> None:
        pass


@dataclass
class Heuristic:
    """2 tokens more after a round that accepted every level, 1 less after any other.

    The schedule "heuristic_transient" of transformers' assisted generation, with a cap.
    """

    num_draft_tokens: int = 5
    cap: int = CAP

    def __post_init__(self) -> None:
        _require_at_least(1, self.num_draft_tokens)
        self.cap = max(self.cap, self.num_draft_tokens)

    def plan(self) -> Plan:
        return Plan(self.num_draft_tokens)

    def observe(self, outcome: Outcome) -> None:
        if outcome.num_accepted_tokens == max(outcome.tree.depths(), default=0):
            self.num_draft_tokens = min(self.cap, self.num_draft_tokens + 2)
        else:
            self.num_draft_tokens = max(1, self.num_draft_tokens - 1)


@dataclass
class ConfidenceThreshold:
    """Draft until the draft model is unsure: stop behind a token whose probability is below threshold.

    adapt: after each round the threshold moves to where false positives (drafted in vain) plus three
    times the false negatives (stopped too early) are fewest. Dynamic speculation, Intel Labs and
    Hugging Face (transformers' AssistedCandidateGenerator); see `best_threshold`.
    """

    threshold: float = 0.4
    cap: int = CAP
    adapt: bool = True
    _samples: deque[tuple[float, bool]] = field(
        default_factory=lambda: deque(maxlen=WINDOW), init=False, repr=False
    )

    def __post_init__(self) -> None:
        _require_at_least(1, self.cap)
        if not 0 <= self.threshold <= 1:
            raise InvalidInput(f"the confidence threshold is {self.threshold}; it must be between 0 and 1")

    def plan(self) -> Plan:
        return Plan(self.cap, stop=Threshold(self.threshold))

    def observe(self, outcome: Outcome) -> None:
        tree, path = outcome.tree, outcome.path
        if not self.adapt or not tree.confidence:
            return
        self._samples.extend((tree.confidence[node], True) for node in path)
        # The first miss ends the record: what was drafted behind it was never judged. In a tree the
        # miss is the first, likeliest child.
        end = path[-1] if path else -1
        missed = next((node for node, parent in enumerate(tree.parents) if parent == end), None)
        if missed is not None:
            self._samples.append((tree.confidence[missed], False))
        self.threshold = best_threshold(self._samples, default=self.threshold)


@dataclass(frozen=True)
class Classified:
    """Draft until a trained classifier says stop (DISCO, arXiv 2405.04304; see `core.classifier`).

    classifier: None where no drafter asks one: n-grams draft to the cap.
    """

    classifier: StopRule | None = None
    cap: int = DEPTH

    def __post_init__(self) -> None:
        _require_at_least(1, self.cap)

    def plan(self) -> Plan:
        return Plan(self.cap, stop=self.classifier)

    def observe(self, outcome: Outcome) -> None:
        pass


def best_threshold(samples: Iterable[tuple[float, bool]], default: float) -> float:
    """The sampled probability t that minimises FPR + 3 FNR when "probability >= t" means "will match".

    The highest such t where several are as good. `default` with fewer than 6 samples, or when all
    matched or none did: there is no ROC curve then.
    """
    pairs = np.asarray([*samples], dtype=np.float64).reshape(-1, 2)  # [samples, 2]
    matched = pairs[:, 1] > 0
    if len(pairs) < MIN_SAMPLES or matched.all() or not matched.any():
        return default
    order = np.argsort(-pairs[:, 0], kind="stable")
    probs, matched = pairs[order, 0], matched[order]
    # One point for each distinct probability: its last sample in descending order.
    last = np.flatnonzero(np.append(probs[1:] != probs[:-1], True))
    hits, misses = np.count_nonzero(matched), np.count_nonzero(~matched)
    false_positives = np.cumsum(~matched)[last]
    false_negatives = hits - np.cumsum(matched)[last]
    # FPR + 3 FNR, times hits * misses: whole numbers, so that ties are ties.
    cost = false_positives * hits + 3 * false_negatives * misses
    return float(probs[last][np.argmin(cost)])


def _require_at_least(least: int, value: int) -> None:
    if value < least:
        raise InvalidInput(f"the number of draft tokens is {value}; it must be {least} or more")


POLICIES: dict[str, Callable[..., Policy]] = {
    "planned": Planned,
    "fixed": Fixed,
    "heuristic": Heuristic,
    "confidence": lambda num_draft_tokens=CAP: ConfidenceThreshold(cap=num_draft_tokens),
    CLASSIFIER: lambda num_draft_tokens=DEPTH, classifier=None: Classified(classifier, num_draft_tokens),
}


def make_policy(
    name: str,
    num_draft_tokens: int | None = None,
    branches: tuple[int, ...] = (),
    classifier: StopRule | None = None,
) -> Policy:
    """A new policy for one sequence.

    num_draft_tokens: the constant of "fixed", the start of "heuristic", the cap of "planned",
    "confidence" and "classifier"; None = that policy's default. branches: see `Plan`; only "fixed"
    drafts trees. classifier: what "classifier" asks; the others ignore it. Raises InvalidInput for an
    unknown name, a bad number, or branches where they mean nothing.
    """
    if name not in POLICIES:
        raise InvalidInput(f"unknown policy {name!r}", f"choose one of {', '.join(POLICIES)}")
    if branches and (name != "fixed" or min(branches) < 1):
        raise InvalidInput("branches must be 1 or more each, with the policy fixed", "add --policy fixed")
    options: dict[str, Any] = {"branches": branches} if branches else {}
    if num_draft_tokens is not None:
        options["num_draft_tokens"] = num_draft_tokens
    if name == CLASSIFIER:
        options["classifier"] = classifier
    return POLICIES[name](**options)
