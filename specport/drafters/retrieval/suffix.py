"""Suffix decoding (SuffixDecoding, arXiv 2411.04975): draft the most frequent continuation of the text's end.

The end of the context is looked up in the context itself, in earlier texts (a history) and in the user's own
files (a datastore; REST, arXiv 2311.08252). The continuations of all matches are counted, and the draft is
the likeliest chain or tree by these counts. It needs no model and no training, and pays in agents' loops,
repeated tasks and edits, where one text resembles many others.
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

from specport.core.estimates.acceptance_rates import CENTRES
from specport.core.ports import DraftRequest, Needs
from specport.core.tree import TokenTree
from specport.core.tree_builder import TreeBuilder
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.suffix_index import GAP, LONGEST, Ending, Matches, SuffixIndex
from specport.drafters.text_drafter import TextDrafter

# Pseudo-count of uncounted continuations after a match of one token, in this text and in others; divided by L
# for a match of L tokens. Fitted to 20,000 tokens that a 1.5B model wrote: a token that had followed once
# after 1, 2, 3, 7 or 12 matching tokens followed again in 30, 53, 62, 79 and 84 % of all cases; one that had
# followed in another text, in 15, 22, 27, 49 and 68 %.
_OWN_DOUBT, _OTHER_DOUBT = 2.0, 7.0
_ties = count()  # breaks ties in the heap: the earlier of two equally likely nodes goes first


_Followed = tuple[tuple[int, ...], int]  # a continuation and its count


@dataclass
class _Text:
    """Hold one sequence: its context as an index, and the length of its prompt."""

    context: Sequence[int]
    num_prompt_tokens: int
    remembered: bool  # whether the text reads and feeds the history
    index: SuffixIndex = field(default_factory=SuffixIndex)


class _Node(NamedTuple):
    """Hold a candidate child. rows: continuations of the matches that pass through it, with counts."""

    token: int
    parent: int
    confidence: float
    level: int
    rows: list[_Followed]


@dataclass(eq=False)
class _Draft(TreeBuilder):
    """Hold a tree that is grown best-first. expected: expected number of accepted tokens by the counts."""

    expected: float = 0.0


class SuffixDrafter(TextDrafter):
    """Propose the likeliest continuations by their counts after the text's end.

    history:   earlier texts; this sequence's output is added when it ends. None = no history.
    datastore: texts that do not change.
    tokens_per_match: maximum proposed tokens per matched token: a longer match is likelier to continue.
               None = the plan's depth, for a planner, which estimates the worth of a match itself.
    least:     least path probability of a drafted node.
    branching: whether to draft trees also where the plan has no branches; for a planner of a target that
               verifies trees.

    A node's confidence is c / (n + d), where its parent occurred n times and was followed by it c times. The
    doubt d falls with the number of matching tokens, the node's own branch included. A text that is
    sampled with a seed must be repeatable, so it neither reads nor feeds the history, which other texts
    change.
    """

    name = "suffix"
    needs = Needs()
    prior = CENTRES  # the confidence is an estimate of the acceptance

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

    def forget(self, key: int) -> None:
        text = self._texts.pop(key, None)
        if text is not None and text.remembered and self._history is not None:
            # The end of the prompt is stored with the output, so that the start of a later output matches.
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
            # The last token is the first output token, which is committed before anything is drafted.
            text = self._texts[request.key] = _Text(context, len(context) - 1, remembered)
        text.index.extend(context[len(text.index) :])
        ending = Ending.of(context)
        branching = self._branching or any(n > 1 for n in plan.branches)
        best = _Draft()
        for index, doubt in self._indices(text):
            matches = index.find(ending, plan.depth)
            best = self._best(best, matches, doubt, plan.depth, plan.max_nodes if branching else 0)
        return best.tree(self.name)

    def _indices(self, text: _Text) -> Iterable[tuple[SuffixIndex, float]]:
        """Yield the indices to search for this text, each with its doubt."""
        yield text.index, _OWN_DOUBT
        if self._history is not None and text.remembered:
            yield self._history.index, _OTHER_DOUBT
        if self._datastore is not None:
            yield self._datastore, _OTHER_DOUBT

    def _best(self, best: _Draft, matches: Matches, doubt: float, depth: int, max_nodes: int) -> _Draft:
        """Return the draft with the most expected tokens: `best`, or one from the matches of some length.

        max_nodes: of a tree; 0 = a chain.
        """
        deepest = depth
        for length, follow in matches.levels():
            if self._tokens_per_match is not None:
                deepest = min(depth, max(1, int(length * self._tokens_per_match)))
            if best.expected < _most(len(follow), length, doubt, deepest):  # else it cannot be better
                draft = _grow(follow, length, doubt, deepest, max_nodes, self._least)
                best = max(best, draft, key=attrgetter("expected"))
        return best


@cache
def _most(count: int, length: int, doubt: float, depth: int) -> float:
    """Return an upper bound of the expected tokens of a draft from `count` matches: all of them agree."""
    expected, path = 0.0, 1.0
    for matched in range(length, length + depth):
        path *= count / (count + doubt / matched)
        expected += path
    return expected


def _grow(
    follow: list[list[int]], length: int, doubt: float, depth: int, max_nodes: int, least: float
) -> _Draft:
    """Return a draft grown best-first by path probability, up to `max_nodes` nodes.

    follow:    [m][depth] continuation of each match.
    max_nodes: 0 = a chain of likeliest children.
    least:     least path probability of a node.
    """
    draft = _Draft()
    most = max_nodes or depth
    heap: list[tuple[float, int, _Node]] = []
    place, path, level, rows = -1, 1.0, 0, [*Counter(map(tuple, follow)).items()]
    while True:
        if len(rows) == 1:  # the usual case after a few tokens: one distinct continuation is left
            row, n = rows[0]
            bar = max(least, -heap[0][0]) if heap else least
            end = min(depth, level + most - len(draft))
            while level < end and row[level] != GAP:
                confidence = n / (n + doubt / (length + level))
                if path * confidence < bar:
                    break
                place = draft.add(place, row[level], confidence)
                path = draft.scores[place]
                draft.expected += path
                level += 1
        if level < depth:
            for child in _children(rows, level, place, doubt / (length + level)):
                if path * child.confidence >= least:
                    heappush(heap, (-path * child.confidence, next(_ties), child))
                if not max_nodes:
                    break
        if not heap or len(draft) == most:
            return draft
        _, _, node = heappop(heap)
        place = draft.add(node.parent, node.token, node.confidence)
        path, level, rows = draft.scores[place], node.level, node.rows
        draft.expected += path


def _children(rows: list[_Followed], level: int, place: int, doubt: float) -> list[_Node]:
    """Return the candidate children of a node, likeliest first. place: index of that node in the tree."""
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
