"""Length rules: how many tokens a sequence drafts in a round, by published rules without measured costs.

They are alternatives to the planner, used by `FirstProposal`. A drafter that ignores stop rules
(n-gram) drafts to the plan's depth: the rule's own number under `Fixed` and `Heuristic`, the cap under
`ConfidenceThreshold` and `Classified`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from specport.core.policies.stop_classifier import DEPTH
from specport.core.ports import Drafted, Outcome, Plan, StopRule
from specport.errors import InvalidInput

# Maximum depth of an adaptive plan (num_assistant_tokens of transformers' dynamic speculation).
CAP = 20
PLANNED, CLASSIFIER = "planned", "classifier"  # the planner, and the length rule that needs training
# Window of (draft probability, accepted) pairs for the adaptive threshold, and the fewest it learns from.
# transformers keeps all pairs; a window follows the text and bounds the cost.
WINDOW = 500
MIN_SAMPLES = 6


class LengthRule(Protocol):
    """Decide how much to draft next. One instance per sequence, so that seeded text is repeatable."""

    def plan(self) -> Plan: ...

    def observe(self, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class Threshold:
    """Stop after a token whose probability is below `least` (Assisted Generation, transformers)."""

    least: float
    top_k: ClassVar[int] = 0

    def goes_on(self, token: Drafted) -> bool:
        return token.confidences[-1] >= self.least


@dataclass(frozen=True)
class Fixed:
    """Draft by the same plan in every round. branches: see `Plan`."""

    num_draft_tokens: int = 5
    branches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_at_least(0, self.num_draft_tokens)

    def plan(self) -> Plan:
        return Plan(self.num_draft_tokens, self.branches)

    def observe(self, outcome: Outcome) -> None:
        pass


@dataclass
class Heuristic:
    """Draft 2 tokens more after a round that accepted every level, 1 less after any other.

    This is the schedule "heuristic_transient" of transformers' assisted generation, with a cap.
    """

    num_draft_tokens: int = 5
    cap: int = CAP

    def __post_init__(self) -> None:
        require_at_least(1, self.num_draft_tokens)
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
    """Draft until the draft model is unsure: stop after a token whose probability is below the threshold.

    adapt: move the threshold after each round to minimize FPR + 3 FNR, where a false positive was drafted in
           vain and a false negative stopped too early (`best_threshold`). Dynamic speculation, Intel Labs
           and Hugging Face (transformers' AssistedCandidateGenerator).
    """

    threshold: float = 0.4
    cap: int = CAP
    adapt: bool = True
    _samples: deque[tuple[float, bool]] = field(
        default_factory=lambda: deque(maxlen=WINDOW), init=False, repr=False
    )

    def __post_init__(self) -> None:
        require_at_least(1, self.cap)
        if not 0 <= self.threshold <= 1:
            raise InvalidInput(f"the confidence threshold is {self.threshold}; it must be between 0 and 1")

    def plan(self) -> Plan:
        return Plan(self.cap, stop=Threshold(self.threshold))

    def observe(self, outcome: Outcome) -> None:
        tree, path = outcome.tree, outcome.path
        if not self.adapt or not tree.confidence:
            return
        self._samples.extend((tree.confidence[node], True) for node in path)
        # Tokens behind the first rejected one were never judged. In a tree the first, likeliest child
        # stands for the rejection.
        end = path[-1] if path else -1
        missed = next((node for node, parent in enumerate(tree.parents) if parent == end), None)
        if missed is not None:
            self._samples.append((tree.confidence[missed], False))
        self.threshold = best_threshold(self._samples, default=self.threshold)


@dataclass(frozen=True)
class Classified:
    """Draft until a trained classifier says stop (DISCO, arXiv 2405.04304; see `stop_classifier`).

    classifier: None where no drafter asks one: n-gram drafters draft to the cap.
    """

    classifier: StopRule | None = None
    cap: int = DEPTH

    def __post_init__(self) -> None:
        require_at_least(1, self.cap)

    def plan(self) -> Plan:
        return Plan(self.cap, stop=self.classifier)

    def observe(self, outcome: Outcome) -> None:
        pass


def best_threshold(samples: Iterable[tuple[float, bool]], default: float) -> float:
    """Return the sampled probability t that minimizes FPR + 3 FNR if "probability >= t" predicts acceptance.

    samples: (probability, accepted). Of several equally good t, the highest. Returns `default` for fewer than
    MIN_SAMPLES samples, or where all or none were accepted: there is no ROC curve then.
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


LENGTH_RULES: dict[str, Callable[..., LengthRule]] = {
    "fixed": Fixed,
    "heuristic": Heuristic,
    "confidence": lambda num_draft_tokens=CAP: ConfidenceThreshold(cap=num_draft_tokens),
    CLASSIFIER: lambda num_draft_tokens=DEPTH, classifier=None: Classified(classifier, num_draft_tokens),
}
POLICIES = (PLANNED, *LENGTH_RULES)


def make_length_rule(
    name: str,
    num_draft_tokens: int | None = None,
    branches: tuple[int, ...] = (),
    classifier: StopRule | None = None,
) -> LengthRule:
    """Make a length rule for one sequence.

    num_draft_tokens: the constant of "fixed", the start of "heuristic", the cap of "confidence" and
                      "classifier"; None = that rule's default.
    branches:         see `Plan`; only "fixed" drafts trees.
    classifier:       the stop rule of "classifier"; other rules ignore it.

    Raises InvalidInput for an unknown name, a bad number, or branches under a rule that drafts chains.
    """
    if name not in LENGTH_RULES:
        raise InvalidInput(f"unknown policy {name!r}", f"choose one of {', '.join(POLICIES)}")
    check_branches(name, branches)
    options: dict[str, Any] = {"branches": branches} if branches else {}
    if num_draft_tokens is not None:
        options["num_draft_tokens"] = num_draft_tokens
    if name == CLASSIFIER:
        options["classifier"] = classifier
    return LENGTH_RULES[name](**options)


def check_branches(policy: str, branches: tuple[int, ...]) -> None:
    """Raise InvalidInput for branches that a policy cannot draft."""
    if branches and (policy != "fixed" or min(branches) < 1):
        raise InvalidInput("branches must be 1 or more each, with the policy fixed", "add --policy fixed")


def require_at_least(least: int, value: int) -> None:
    """Raise InvalidInput for a number of draft tokens below `least`."""
    if value < least:
        raise InvalidInput(f"the number of draft tokens is {value}; it must be {least} or more")
