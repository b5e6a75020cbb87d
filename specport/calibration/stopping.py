"""Train the classifier that stops drafting (`core.policies.stop_classifier`) on text that the target wrote.

The draft reads the target's text once: as long as all its guesses are right, drafting would read the same
tokens. Each guess is labelled by whether it was right. The threshold is chosen for the most tokens per
second, by measured costs, on texts that the network was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from specport.calibration.target_text import Text, along
from specport.core.estimates.confidence import Spread, spread_of
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.stop_classifier import DEPTH, Classifier, features, fit
from specport.core.ports import Array, Drafted, Model
from specport.drafters.model.context_head import ContextHead
from specport.drafters.model.head import DraftHead

MIN_SAMPLES = 50  # fewest guesses to learn from
_THRESHOLDS = tuple(np.linspace(0.05, 0.95, 19).round(2).tolist())
Stops = Callable[[int, int], bool]  # (place in the text, position in the draft) -> whether drafting ends here


@dataclass(frozen=True)
class Trace:
    """A draft's guesses along one text: the spread of each distribution, and whether the guess was right."""

    spreads: tuple[Spread, ...]
    accepted: tuple[bool, ...]


@dataclass(frozen=True)
class Trained:
    """A trained classifier and what it is expected to bring.

    tokens_per_second: with the classifier, on held-out texts.
    fixed_tokens_per_second: with the best fixed number of draft tokens, `num_fixed`.
    """

    classifier: Classifier
    tokens_per_second: float
    fixed_tokens_per_second: float
    num_fixed: int


def trace(draft: Model, head_tokens: Sequence[int] | None, texts: Sequence[Text], top_k: int) -> list[Trace]:
    """Return the draft's guesses along each text; texts that do not fit are left out.

    head_tokens: ids of the columns of the draft's logits; None = all in order.
    top_k:       see `spread_of`.
    """
    traces = []
    for text in texts:
        spreads, accepted = [], []
        for row, head, token in _guesses(draft, head_tokens, text):
            xp = array_namespace(row)
            column = int(xp.argmax(row))
            spreads.append(spread_of(xp.exp(row - row[column]), top_k))
            accepted.append(head.ids([column]) == [token])
        if spreads:
            traces.append(Trace(tuple(spreads), tuple(accepted)))
    return traces


def _guesses(
    draft: Model, head_tokens: Sequence[int] | None, text: Text
) -> Iterator[tuple[Array, DraftHead, int]]:
    """Yield for each token of the answer: logits [columns] as in drafting, their head, the token."""
    vocab = 1 + max(*text.prompt, *text.answer, *(head_tokens or (draft.vocab_size - 1,)))
    head = ContextHead(draft, DraftHead(vocab, head_tokens))
    for output, answer in along(draft, [text]):
        for i, token in enumerate(answer):
            head.follow(0, [*text.prompt, *answer[:i]])
            yield head.logits(0, output, [i])[0], head.head(0), token


def train(traces: Sequence[Trace], target: StepCosts, draft_s: float) -> Trained | None:
    """Train the classifier and choose its threshold.

    draft_s: seconds of a draft step. Returns None where there are too few guesses, or all have the same
             label.
    """
    labels = [label for one in traces for label in one.accepted]
    if len(traces) < 2 or len(labels) < MIN_SAMPLES or len(set(labels)) < 2:
        return None
    held_out = []  # probabilities for each text, from a network that has not seen it
    for i, one in enumerate(traces):
        others = [*traces[:i], *traces[i + 1 :]]
        held_out.append(_probabilities(_fit(others), one))

    def by_threshold(least: float) -> float:
        def stops(i: int) -> Stops:
            return lambda place, position: held_out[i][place, position - 1] < least

        return _speed(traces, stops, target, draft_s)

    threshold = max(_THRESHOLDS, key=by_threshold)
    number, fixed = best_number(traces, target, draft_s)
    classifier = replace(_fit(traces), threshold=threshold)
    return Trained(classifier, by_threshold(threshold), fixed, number)


def best_number(traces: Sequence[Trace], target: StepCosts, draft_s: float) -> tuple[int, float]:
    """Return the best fixed number of draft tokens, and the tokens per second with it.

    traces: at least one, with guesses. draft_s: seconds of a draft step.
    """

    def speed(number: int) -> float:
        return _speed(traces, lambda i: lambda place, position: position >= number, target, draft_s)

    best = max(range(1, DEPTH + 1), key=speed)
    return best, speed(best)


def _speed(
    traces: Sequence[Trace], stops: Callable[[int], Stops], target: StepCosts, draft_s: float
) -> float:
    """Return tokens per second over all traces. stops: number of a trace -> where its drafts end."""
    played = [simulate(one.accepted, stops(i), target, draft_s) for i, one in enumerate(traces)]
    return sum(tokens for tokens, _ in played) / sum(seconds for _, seconds in played)


def _fit(traces: Sequence[Trace]) -> Classifier:
    """Fit a network on the rounds of an oracle that drafts until the first wrong guess."""
    rows, labels = [], []
    for one in traces:
        position = 1
        for spread, accepted in zip(one.spreads, one.accepted, strict=True):
            rows.append(_row(spread, position))
            labels.append(accepted)
            position = position + 1 if accepted and position < DEPTH else 1
    return fit(rows, labels)


def _row(spread: Spread, position: int) -> list[float]:
    return features(Drafted((0.0,) * position, *spread))


def _probabilities(classifier: Classifier, one: Trace) -> NDArray[np.float64]:
    """Return [text, DEPTH] probabilities of a right guess, by place in the text and position in the draft."""
    rows = [_row(spread, position) for spread in one.spreads for position in range(1, DEPTH + 1)]
    return classifier.probabilities(np.asarray(rows)).reshape(-1, DEPTH)


def simulate(accepted: Sequence[bool], stops: Stops, target: StepCosts, draft_s: float) -> tuple[int, float]:
    """Return tokens and seconds of decoding the text with drafts that end where `stops` says.

    The guesses that follow a wrong one are unknown; the guesses along the text are taken instead.
    """
    place, seconds = 0, 0.0
    while place < len(accepted):
        num, right = 0, 0
        while num < DEPTH and place + num < len(accepted):
            right += accepted[place + num] and right == num
            num += 1
            if stops(place + num - 1, num):
                break
        seconds += target.step(num + 1, 0) + num * draft_s
        place += right + 1
    return min(place, len(accepted)), seconds
