"""N-gram drafting, also known as prompt lookup decoding (A. Saxena, 2023): copy what followed before.

The last n tokens of the context are looked up earlier in the same context, and what followed them
is proposed. Needs no model and no training; pays wherever the output repeats its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specport.core.ports import DraftRequest, Outcome, Plan
from specport.core.tree import TokenTree


@dataclass
class _Index:
    """Where each n-gram of a context ended: n-gram -> positions of the token behind it, ascending."""

    followers: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    num_indexed: int = 0


class NgramDrafter:
    """Proposes the continuation of the longest, then most recent, earlier match.

    max_ngram: longest match that is tried first.
    min_ngram: shortest match that is trusted.
    tokens_per_match: longest proposal for each matched token. A longer match is likelier to go on:
               the rule of SuffixDecoding (arXiv 2411.04975), and the only confidence an n-gram has.
    """

    name = "ngram"

    def __init__(self, max_ngram: int = 8, min_ngram: int = 1, tokens_per_match: float = 1.5) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"1 <= min_ngram <= max_ngram, got {min_ngram} and {max_ngram}")
        self._max = max_ngram
        self._min = min_ngram
        self._tokens_per_match = tokens_per_match
        self._indices: dict[int, _Index] = {}

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._propose(request) for request in requests]

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing to learn: the context itself is the memory."""

    def forget(self, key: int) -> None:
        self._indices.pop(key, None)

    def _propose(self, request: DraftRequest) -> TokenTree:
        index = self._indices.setdefault(request.key, _Index())
        self._extend(index, request.context)
        starts, matched = self._matches(index, request.context, request.plan)
        depth = min(request.plan.depth, max(1, int(matched * self._tokens_per_match)))
        return _merge(request.context, starts, depth)

    def _extend(self, index: _Index, context: Sequence[int]) -> None:
        """Index the n-grams that have got a follower since the last round."""
        for position in range(max(1, index.num_indexed), len(context)):
            for n in range(self._min, min(self._max, position) + 1):
                index.followers.setdefault(tuple(context[position - n : position]), []).append(position)
        index.num_indexed = len(context)

    def _matches(self, index: _Index, context: Sequence[int], plan: Plan) -> tuple[list[int], int]:
        """Positions to copy from, best first, as many as the root may have children; the longest match."""
        wanted = plan.branches[0] if plan.branches else 1
        starts: list[int] = []
        first_tokens: set[int] = set()
        longest = 0
        for n in range(min(self._max, len(context)), self._min - 1, -1):
            for position in reversed(index.followers.get(tuple(context[-n:]), ())):
                # A tree wants branches that differ from their first token on.
                if context[position] not in first_tokens:
                    first_tokens.add(context[position])
                    starts.append(position)
                    longest = max(longest, n)
                    if len(starts) == wanted:
                        return starts, longest
        return starts, longest


def _merge(context: Sequence[int], starts: Sequence[int], depth: int) -> TokenTree:
    """The continuations as branches below the root token.

    A match near the end of the context runs into its own copy: text that repeats with a period is
    continued with that period.
    """
    tokens: list[int] = []
    parents: list[int] = []
    for start in starts:
        branch = list(context[start : start + depth])
        period = len(branch)
        while len(branch) < depth:
            branch.append(branch[len(branch) - period])
        first = len(tokens)
        parents += [-1, *range(first, first + depth - 1)]
        tokens += branch
    return TokenTree(tuple(tokens), tuple(parents), sources=(NgramDrafter.name,) * len(tokens))
