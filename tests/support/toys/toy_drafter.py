"""A drafter that reads a toy model's table: chains and trees, drawn or greedy, without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specport.core.estimates.acceptance_rates import CENTRES
from specport.core.ports import Drafted, DraftRequest, Needs, Outcome, Prefilled
from specport.core.sampling.processors import Prefix
from specport.core.tree import TokenTree
from support.toys.toy_model import ToyModel


class ToyDrafter:
    """Drafts what a toy model would write: drawn with replacement in a sampled text, else the likeliest.

    drawn:     False: deterministic drafts in sampled texts too.
    keys:      of the sequences that it knows, as a drafter's own caches would be; `forget` takes them out.
    forgotten, outcomes, events: what it was told, in order.
    """

    prior = CENTRES
    parallel = None

    def __init__(
        self, draft: ToyModel, *, name: str = "toy", drawn: bool = True, needs: Needs = Needs()  # noqa: B008
    ) -> None:  # fmt: skip
        self.draft, self.name, self.drawn, self.needs = draft, name, drawn, needs
        self.keys: set[int] = set()
        self.forgotten: list[int] = []
        self.outcomes: list[Outcome] = []
        self.events: list[Prefilled] = []

    def behind(self, request: DraftRequest) -> int:
        return 1

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        self.keys.update(request.key for request in requests)
        return [self._tree(request) for request in requests]

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        self.events += events

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes += outcomes

    def forget(self, key: int) -> None:
        self.keys.discard(key)
        self.forgotten.append(key)

    def _tree(self, request: DraftRequest) -> TokenTree:
        plan, sampler, context = request.plan, request.sampler, request.context
        draws = self.drawn and not sampler.params.greedy
        tokens: list[int] = []
        parents: list[int] = []
        probs: list[np.ndarray | None] = []
        confidence: list[float] = []
        level: list[tuple[int, tuple[int, ...], tuple[float, ...]]] = [(-1, (), ())]
        for depth in range(plan.depth):
            width = plan.branches[depth] if depth < len(plan.branches) else 1
            below = []
            for node, path, above in level:
                text = [0, *context, *path]
                row = self.draft.table[text[-2] % self.draft.vocab, text[-1] % self.draft.vocab]
                q = sampler.distribution(row, Prefix(context, path))
                weights = np.exp(sampler.process(row, Prefix(context, path)).astype(np.float64))
                weights /= weights.sum()
                likeliest = np.argsort(-weights, kind="stable").tolist()
                for child in range(width):
                    token = sampler.draw(q) if draws else likeliest[child]
                    tokens.append(token)
                    parents.append(node)
                    probs.append(q if draws else None)
                    confidence.append(float(weights[token]))
                    chances = (*above, confidence[-1])
                    if plan.stop is None or plan.stop.goes_on(Drafted(chances)):
                        below.append((len(tokens) - 1, (*path, token), chances))
            level = below
        return TokenTree(
            tuple(tokens), tuple(parents), probs if draws else None,
            confidence=tuple(confidence), sources=(self.name,) * len(tokens),
        )  # fmt: skip
