"""Whether a draft is better than another: rounds of drafting are replayed on text that the target wrote.

The text of a lossless decoding does not depend on the draft. So the target's answers are enough to replay
rounds of a fixed length, and no target is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specport.core.ports import DraftRequest, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.drafters.builtin import own_model
from specport.drafters.context import MAX_WINDOW, DraftModel
from specport.progress import Progress
from specport.traffic.dialogues import Dialogue

DEPTH = 4  # tokens of a round, where one pass gives one token
MARGIN = 0.02  # by which tokens per step on own traffic must rise, as a share
BOUND = 0.03  # by which tokens per step on old text may fall, as a share


@dataclass(frozen=True)
class Replayed:
    """Rounds of a draft on some texts.

    tokens_per_step: accepted tokens of a round and the target's own one, on average.
    by_depth: share of the rounds in which the tokens up to this depth were accepted.
    tokens:   of the answers.
    """

    tokens_per_step: float
    by_depth: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class Judgement:
    """The old and the new draft on the user's own held-out texts and on old ones."""

    own_before: Replayed
    own_after: Replayed
    old_before: Replayed
    old_after: Replayed

    @property
    def better(self) -> bool:
        """Return whether the new draft is better on own text by MARGIN, and on old text within BOUND."""
        gained = self.own_after.tokens_per_step >= (1 + MARGIN) * self.own_before.tokens_per_step
        return gained and self.old_after.tokens_per_step >= (1 - BOUND) * self.old_before.tokens_per_step

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        return {**asdict(self), "margin": MARGIN, "bound": BOUND}


def replay(draft: DraftModel, texts: Sequence[Dialogue], progress: Progress) -> Replayed:
    """Replay greedy rounds of a draft on the answers of these texts."""
    drafter = own_model(draft, draft.tokenizer.vocab_size, MAX_WINDOW)
    depth = drafter.parallel.depth if drafter.parallel else DEPTH
    sampler, plan = Sampler(SamplingParams()), Plan(depth)
    rounds, accepted, tokens = 0, [0] * depth, 0
    for number, text in enumerate(texts):
        progress("the draft reads", number / len(texts))
        context = text.tokens[: text.start].tolist()
        answer = text.tokens[text.start :].tolist()
        tokens += len(answer)
        at = 0
        try:
            while at < len(answer):
                request = DraftRequest(0, context, plan, sampler, num_left=depth + 1)
                (tree,) = drafter.propose([request])
                count = _agreeing(tree.tokens, answer[at:])
                for d in range(count):
                    accepted[d] += 1
                rounds += 1
                context += answer[at : at + count + 1]
                at += count + 1
        finally:
            drafter.forget(0)
    steps = max(rounds, 1)
    return Replayed(round(tokens / steps, 4), tuple(round(a / steps, 4) for a in accepted), tokens)


def _agreeing(drafted: Sequence[int], answer: Sequence[int]) -> int:
    """Return how many drafted tokens agree with the answer before the first that does not."""
    count = 0
    while count < min(len(drafted), len(answer)) and drafted[count] == answer[count]:
        count += 1
    return count
