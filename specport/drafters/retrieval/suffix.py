"""Suffix decoding (SuffixDecoding, arXiv 2411.04975): draft what most often followed the end of the text.

The end of the context is looked up in the text itself, in earlier texts (a history) and in the user's own
files (a datastore; REST, arXiv 2311.08252). Where it stood before, what came next is counted, and the draft
is the path, or the tree, that is likeliest by these counts. Needs no model and no training; pays in agents'
loops, repeated tasks and edits, where one text resembles many others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter
from typing import NamedTuple

from specport.core.planning.acceptance_rates import CENTRES
from specport.core.ports import DraftRequest, Outcome
from specport.core.tree import TokenTree
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.suffix_index import GAP, LONGEST, Ending, Matches, SuffixIndex

# Continuations that a context of one token has beside those that were counted, in this text and in others;
# one of L tokens has the L-th part. Fitted to 20,000 tokens that a 1.5B model wrote: what had followed once
# behind 1, 2, 3, 7 or 12 tokens came again in 30, 53, 62, 79 and 84 % of all cases; what had in another text,
# in 15, 22, 27, 49 and 68 %.
_OWN_DOUBT, _OTHER_DOUBT = 2.0, 7.0
_ties = count()  # the earlier node goes first where two are as likely


_Followed = tuple[tuple[int, ...], int]  # what came next, and how often


@dataclass
class _Text:
    """One sequence: its context as an index, and where its output begins."""

    context: Sequence[int]
    num_prompt_tokens: int
    remembered: bool  # whether the text may be learnt from, and may use what was learnt
    index: SuffixIndex = field(default_factory=SuffixIndex)


class _Node(NamedTuple):
    """A child that may be taken. rows: what followed at the matches that pass through it, with counts."""

    token: int
    parent: int
    confidence: float
    level: int
    rows: list[_Followed]


@dataclass
class _Draft:
    """A tree that is grown best-first. score: expected tokens, by the counts."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    score: float = 0.0


class SuffixDrafter:
    """Proposes the likeliest continuations by how often they followed what the text ends with.

    history:   earlier texts; this sequence's output is added when it ends. None: only the text itself.
    datastore: texts that do not change.
    tokens_per_match: longest proposal for each matched token, since a longer match is likelier to go on.
               None: as deep as the plan says, for a planner, which knows better what a match is worth.
    least:     probability of a path below which it is not drafted.
    branching: draft trees also where the plan names no branches; for a planner of a target that takes trees.

    A node's confidence is c / (n + d) where its parent came n times, and the node c times next; the doubt d
    falls with the matching tokens, those of the node's own branch counted. A text that is sampled with a
    seed must come out twice the same, so it neither reads nor feeds the history, which other texts change.
    """

    name = "suffix"
    prior = CENTRES  # its confidence is an estimate of just that

    def __init__(
        self,
        history: History | None = None,
        datastore: SuffixIndex | None = None,
        *,
        tokens_per_match: float | None = 1.0,
        least: float = 0.1,
        branching: bool = False,
    ) -> None:
        self._history = history
        self._datastore = datastore
        self._tokens_per_match = tokens_per_match
        self._least = least
        self._branching = branching
        self._texts: dict[int, _Text] = {}

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._propose(request) for request in requests]

    def behind(self, request: DraftRequest) -> int:
        """There is no model to feed."""
        return 0

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing to learn before a text ends: until then its context is the memory."""

    def forget(self, key: int) -> None:
        text = self._texts.pop(key, None)
        if text is not None and text.remembered and self._history is not None:
            # The end of the prompt goes with the answer: it is what the next answer's start is looked up by.
            start = max(0, text.num_prompt_tokens - LONGEST)
            self._history.add(text.context[start:])

    def _propose(self, request: DraftRequest) -> TokenTree:
        context, plan = request.context, request.plan
        if not context or plan.depth < 1:
            return TokenTree()
        text = self._texts.get(request.key)
        if text is None:
            params = request.sampler.params
            remembered = params.greedy or params.seed is None
            # The last token is the first of the output: it is there before anything is drafted.
            text = self._texts[request.key] = _Text(context, len(context) - 1, remembered)
        text.index.extend(context[len(text.index) :])
        ending = Ending.of(context)
        branching = self._branching or any(n > 1 for n in plan.branches)
        best = _Draft()
        for index, doubt in self._indices(text):
            matches = index.find(ending, plan.depth)
            best = self._best(best, matches, doubt, plan.depth, plan.max_nodes if branching else 0)
        return TokenTree(
            tuple(best.tokens),
            tuple(best.parents),
            confidence=tuple(best.confidence),
            sources=(self.name,) * len(best.tokens),
        )

    def _indices(self, text: _Text) -> Iterable[tuple[SuffixIndex, float]]:
        """What is looked into for this text, and the doubt of it."""
        yield text.index, _OWN_DOUBT
        if self._history is not None and text.remembered:
            yield self._history.index, _OTHER_DOUBT
        if self._datastore is not None:
            yield self._datastore, _OTHER_DOUBT

    def _best(self, best: _Draft, matches: Matches, doubt: float, depth: int, max_nodes: int) -> _Draft:
        """The draft of the highest score: `best`, or one behind the matches of some length.

        max_nodes: of a tree; 0 = a chain.
        """
        deepest = depth
        for length, follow in matches.levels():
            if self._tokens_per_match is not None:
                deepest = min(depth, max(1, int(length * self._tokens_per_match)))
            if best.score < _most(len(follow), length, doubt, deepest):  # else it need not be grown
                draft = _grow(follow, length, doubt, deepest, max_nodes, self._least)
                best = max(best, draft, key=attrgetter("score"))
        return best


@cache
def _most(count: int, length: int, doubt: float, depth: int) -> float:
    """The score of a chain on which all of `count` matches agree; no chain or tree of theirs has more."""
    score, path = 0.0, 1.0
    for matched in range(length, length + depth):
        path *= count / (count + doubt / matched)
        score += path
    return score


def _grow(
    follow: list[list[int]], length: int, doubt: float, depth: int, max_nodes: int, least: float
) -> _Draft:
    """Take the likeliest node next, by the product of its path's confidences, until there are `max_nodes`.

    follow: [m, depth] what came next at each of the matches. max_nodes: 0 = a chain of first children.
    least:  probability of a path below which nothing is drafted.
    """
    draft = _Draft()
    tokens, parents, confidences = draft.tokens, draft.parents, draft.confidence
    most = max_nodes or depth
    heap: list[tuple[float, int, _Node]] = []
    place, path, level, rows = -1, 1.0, 0, [*Counter(map(tuple, follow)).items()]
    while True:
        if len(rows) == 1:  # the usual case once a few tokens have told the matches apart
            row, n = rows[0]
            bar = max(least, -heap[0][0]) if heap else least
            end = min(depth, level + most - len(tokens))
            while level < end and row[level] != GAP:
                confidence = n / (n + doubt / (length + level))
                if path * confidence < bar:
                    break
                path *= confidence
                tokens.append(row[level])
                parents.append(place)
                confidences.append(confidence)
                draft.score += path
                place = len(tokens) - 1
                level += 1
        if level < depth:
            for child in _children(rows, level, place, doubt / (length + level)):
                if path * child.confidence >= least:
                    heappush(heap, (-path * child.confidence, next(_ties), child))
                if not max_nodes:
                    break
        if not heap or len(tokens) == most:
            return draft
        negative, _, node = heappop(heap)
        place, path, level, rows = len(tokens), -negative, node.level, node.rows
        tokens.append(node.token)
        parents.append(node.parent)
        confidences.append(node.confidence)
        draft.score += path


def _children(rows: list[_Followed], level: int, place: int, doubt: float) -> list[_Node]:
    """What came next, the likeliest first. place: of their parent in the tree."""
    groups: dict[int, list[_Followed]] = {}
    total = 0
    for followed in rows:
        groups.setdefault(followed[0][level], []).append(followed)
        total += followed[1]
    groups.pop(GAP, None)
    children = [
        _Node(token, place, sum([n for _, n in group]) / (total + doubt), level + 1, group)
        for token, group in groups.items()
    ]
    children.sort(key=attrgetter("confidence"), reverse=True)
    return children
