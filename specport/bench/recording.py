"""Record what a draft model proposes at each position of the target's greedy answers.

A greedy, lossless text does not depend on how it was drafted. So a recording of the text and of the draft's
chain at each position is enough to replay any policy without a model (`bench.replay`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct

from specport.bench.prompts import Prompt
from specport.core.engine import Engine
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Drafted, DraftRequest, Plan, PlannedDrafter
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.sequence import Generation
from specport.errors import InvalidInput
from specport.models.atomic import write_atomically
from specport.outside import Format, Table
from specport.outside.numbers import Count, Share, TokenId
from specport.runtime.stored.cost_table import CostTable

FORMAT = 1
DEPTH = 8  # drafted tokens per position
_DIGITS = 4  # of a recorded confidence


@dataclass(frozen=True)
class RecordedText:
    """Hold one prompt's answer and the draft's chains.

    prompt, tokens: token ids; the first of `tokens` came with the prompt's own step.
    chains:         [len(tokens) - 1][<= DEPTH] the greedy draft behind tokens[: i + 1].
    confidences:    the draft's probability of each of them.
    Raises ValueError where the chains do not match the tokens.
    """

    id: str
    category: str
    prompt: tuple[TokenId, ...]
    tokens: tuple[TokenId, ...]
    chains: tuple[tuple[TokenId, ...], ...]
    confidences: tuple[tuple[Share, ...], ...]

    def __post_init__(self) -> None:
        lengths = [*map(len, self.chains)]
        same = lengths == [*map(len, self.confidences)] and max(lengths, default=0) <= DEPTH
        if not self.prompt or len(self.chains) != len(self.tokens) - 1 or not same:
            raise ValueError(f"the chains of text {self.id} do not match its tokens")


@dataclass(frozen=True)
class Costs:
    """Hold the step costs of a target and its draft on one device.

    min_width: new tokens to which the target's rows are padded.
    """

    target: StepCosts
    draft: StepCosts
    min_width: int = 1


@dataclass(frozen=True)
class Recording:
    """Hold the recorded texts of a pair.

    about: model, draft, device and date, for people.
    costs: by device; more devices than the recording's own may be added by hand.
    max_new_tokens: limit of each answer.
    parallel: whether one pass of the draft model drafts a whole chain.
    """

    about: Mapping[str, Any]
    costs: Mapping[str, Costs]
    max_new_tokens: int
    texts: tuple[RecordedText, ...] = field(repr=False)
    parallel: bool = False

    def resumed(self, path: Path) -> Recording:
        """Return this recording with the texts that a stopped run left in `path`.

        Raises InvalidInput where they are of other models or prompts.
        """
        if not path.exists():
            return self
        held = Recording.load(path)
        differing = [key for key, value in self.about.items() if held.about.get(key) != value]
        if held.max_new_tokens != self.max_new_tokens:
            differing.append("max_new_tokens")
        if differing:
            raise InvalidInput(f"{path} is a recording of another {differing[0]}", "name another file")
        return replace(self, texts=held.texts)

    def save(self, path: Path) -> None:
        """Write the recording as JSON."""
        held = {
            "format": FORMAT,
            "about": dict(self.about),
            "max_new_tokens": self.max_new_tokens,
            "parallel": self.parallel,
            "costs": {
                name: {
                    "target": _table(costs.target),
                    "draft": _table(costs.draft),
                    "min_width": costs.min_width,
                }
                for name, costs in self.costs.items()
            },
            "texts": [vars(text) for text in self.texts],
        }
        write_atomically(path, json.dumps(held, separators=(",", ":")))

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read a recording. Raises InvalidInput for a file that is none."""
        held = _STORED.read(path)
        costs = {n: Costs(p.target.costs(), p.draft.costs(), p.min_width) for n, p in held.costs.items()}
        return cls(held.about, costs, held.max_new_tokens, held.texts, held.parallel)


class _Pair(Struct):
    target: CostTable
    draft: CostTable
    min_width: Annotated[int, Meta(ge=1, lt=1 << 16)]


class _Stored(Struct):
    about: Table
    costs: Annotated[dict[str, _Pair], Meta(min_length=1)]
    max_new_tokens: Count
    texts: Annotated[tuple[RecordedText, ...], Meta(min_length=1)]
    parallel: bool


_STORED = Format(
    _Stored, "a recording", "make one with specport bench --record FILE", InvalidInput, FORMAT, 1 << 30
)


class Unstopped:
    """Draft to the plan's depth, but with confidences, which a plan without a stop rule leaves out."""

    top_k: ClassVar[int] = 0

    def goes_on(self, token: Drafted) -> bool:
        return True


def record(
    engine: Engine,
    drafter: PlannedDrafter,
    prompt: Prompt,
    ids: Sequence[int],
    eos_ids: frozenset[int],
    max_new_tokens: int,
) -> RecordedText:
    """Answer a prompt greedily with the plain `engine`, and draft a chain at each position."""
    generation = Generation(list(ids), SamplingParams(), max_new_tokens, eos_ids)
    for _ in engine.run([generation]):
        pass
    tokens = generation.tokens[generation.num_prompt_tokens :]
    chains, confidences = _chains(drafter, ids, tokens)
    return RecordedText(prompt.id, prompt.category, tuple(ids), tuple(tokens), chains, confidences)


def _chains(
    drafter: PlannedDrafter, prompt: Sequence[int], tokens: Sequence[int]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]]:
    """Return the drafted chain behind each token but the last, and its confidences."""
    chains, confidences = [], []
    plan, sampler = Plan(DEPTH, stop=Unstopped()), Sampler(SamplingParams())
    context = list(prompt)
    try:
        for token in tokens[:-1]:
            context.append(token)
            (tree,) = drafter.propose([DraftRequest(0, context, plan, sampler, num_left=DEPTH + 1)])
            chains.append(tree.tokens)
            confidences.append(tuple(round(c, _DIGITS) for c in tree.confidence))
    finally:
        drafter.forget(0)
    return tuple(chains), tuple(confidences)


def _table(costs: StepCosts) -> dict[str, Any]:
    seconds = [[costs.step(width, context) for width in costs.widths] for context in costs.contexts]
    return {
        "widths": costs.widths,
        "contexts": costs.contexts,
        "seconds": seconds,
        "change": costs.change,
    }
