"""Where the end of a context stood before, in a text that grows: what suffix decoding asks of suffix trees.

Positions are sorted by the text in front of them, read backwards (the suffix array of the reversed text), so
those that share the longest match stand side by side and one binary search finds them: the same sets, hence
the same counts, as the nodes of a suffix tree (SuffixDecoding, arXiv 2411.04975). A trie of Python objects
takes kilobytes a token and an automaton can forget nothing; this takes 12 bytes a token and can be written to
a file as it is. numpy sorts it in about 0.5 µs a token: pydivsufsort takes a quarter of that, too little to
be worth a compiled dependency. What came in since the last sorting is scanned.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

LONGEST = 32  # matched tokens; a longer match is no surer
GAP = -1  # stands between texts: nothing matches it, nothing is copied beyond it
MAX_TOKENS = 1 << 28  # positions are 32 bits wide, and so are ranks while sorting
_KEPT = 32  # matches that are counted; more would not change what is likeliest
_UNSORTED = 4096  # tokens that are scanned at least; beyond, an eighth of what is sorted

Ints = NDArray[np.int32]
_NO_PLACES: Ints = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Ending:
    """The end of a context, made once for all texts that are searched for it.

    tokens: [LONGEST] the last token last; in front of a shorter context what equals nothing, not even GAP.
    key:    the same backwards, in an order of bytes that is the order of tokens.
    """

    tokens: Ints
    key: bytes

    @classmethod
    def of(cls, context: Sequence[int]) -> Ending:
        tail = list(context[-LONGEST:])
        tokens = np.array([GAP - 1] * (LONGEST - len(tail)) + tail, dtype=np.int32)
        return cls(tokens, _backwards(tokens[LONGEST - len(tail) :]))


@dataclass(frozen=True)
class Matches:
    """Earlier places of a context's end, the longest match first and the latest first among equals.

    lengths: [m] matching tokens, 1 to LONGEST.
    follow:  [m, depth] what came next; GAP behind the end of a text.
    """

    lengths: list[int]
    follow: Ints

    def levels(self) -> Iterator[tuple[int, list[list[int]]]]:
        """Match length -> what followed the matches of at least that length, longest first.

        Lengths that do not double the matches are passed over: they would hardly change the counts.
        """
        most = len(self.lengths)
        told = 0
        for i, length in enumerate(self.lengths, 1):
            if i == most or (self.lengths[i] < length and i >= 2 * told):
                yield length, self.follow[:i].tolist()
                told = i


class SuffixIndex:
    """A text, or several with a GAP behind each, that can be searched for what a context ends with."""

    def __init__(self, tokens: Sequence[int] | Ints = (), order: Ints | None = None) -> None:
        """order: as `order` gave it for these tokens, to spare the sorting."""
        # The front is a margin, so that what stands before every position has the same width.
        self._buffer: Ints = np.full(LONGEST, GAP, dtype=np.int32)
        self._fronts: Ints = sliding_window_view(self._buffer, LONGEST)  # [position] what stands before it
        self._length = 0
        self._order: Ints = _NO_PLACES  # [sorted] positions by what stands in front of them
        self._reversed = b""
        self._append(tokens)
        if order is not None:
            self._take(order)
        else:
            self._sort_if_due()

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> Ints:
        return self._buffer[LONGEST : LONGEST + self._length]

    @property
    def order(self) -> Ints:
        """[n - 1] all positions but the first, sorted: to be kept with the tokens."""
        if len(self._order) < self._length - 1:
            self._take(_sorted_by_front(self.tokens))
        return self._order

    def extend(self, tokens: Sequence[int] | Ints) -> None:
        """Append to the text."""
        self._append(tokens)
        self._sort_if_due()

    def find(self, ending: Ending, depth: int) -> Matches:
        """The longest and latest matches, and up to `depth` tokens behind each."""
        places = self._unsorted_places(ending) if self._length > 1 else _NO_PLACES
        if len(self._order):
            places = np.concatenate([places, self._sorted_places(ending)])
        lengths = self._match_lengths(places, ending)
        best = np.lexsort((-places, -lengths))[: min(_KEPT, np.count_nonzero(lengths))]
        return Matches(lengths[best].tolist(), self._behind(places[best], depth))

    def _unsorted_places(self, ending: Ending) -> Ints:
        """Matches among the positions that are not sorted yet: at most _KEPT, the longest or latest."""
        first = len(self._order)
        before = self._buffer[LONGEST + first : LONGEST + self._length - 1]
        places = (np.flatnonzero(before == ending.tokens[-1]) + (first + 1)).astype(np.int32)
        back = 2
        if len(places) > _KEPT and self._match_lengths(places[-_KEPT:], ending).min() == LONGEST:
            back = LONGEST + 1  # a text of a short period: the latest are as long as any
        while len(places) > _KEPT and back <= LONGEST:
            longer = places[self._buffer[places + (LONGEST - back)] == ending.tokens[-back]]
            if len(longer) < _KEPT:
                # The latest of the others fill up what the longer ones leave free.
                others = np.setdiff1d(places, longer, assume_unique=True)
                return np.concatenate([others[len(longer) - _KEPT :], longer])
            places = longer
            back += 1
        return places[-_KEPT:]

    def _sorted_places(self, ending: Ending) -> Ints:
        """The neighbours of where the context would stand: among them are the longest matches."""
        text, size, length = self._reversed, len(ending.key), len(self._reversed)

        def before(position: int) -> bytes:
            start = length - 4 * position
            return text[start : start + size]

        place = bisect_left(self._order.data, ending.key, key=before)
        return self._order[max(0, place - _KEPT) : place + _KEPT]

    def _match_lengths(self, places: Ints, ending: Ending) -> NDArray[np.int64]:
        """[m] how many tokens in front of each place are those at the context's end."""
        differ = self._fronts[places] != ending.tokens
        lengths: NDArray[np.int64] = differ[:, ::-1].argmax(axis=1)
        lengths[(lengths == 0) & ~differ[:, -1]] = LONGEST
        return lengths

    def _behind(self, places: Ints, depth: int) -> Ints:
        """[m, depth] A match near the end runs into its own copy: text that repeats with a period is
        continued with that period.
        """
        steps = np.arange(depth, dtype=np.int32)
        at = places[:, None] + steps
        if len(places) and int(places.max()) + depth > self._length:
            at = places[:, None] + steps % (self._length - places)[:, None]
        behind: Ints = self._buffer[at + LONGEST]
        return behind

    def _append(self, tokens: Sequence[int] | Ints) -> None:
        end = self._length + len(tokens)
        if end > MAX_TOKENS:
            raise ValueError(f"{end} tokens are more than an index holds ({MAX_TOKENS})")
        if LONGEST + end > len(self._buffer):
            grown = np.full(LONGEST + end + end // 2, GAP, dtype=np.int32)
            grown[: len(self._buffer)] = self._buffer
            self._buffer, self._fronts = grown, sliding_window_view(grown, LONGEST)
        self._buffer[LONGEST + self._length : LONGEST + end] = tokens
        self._length = end

    def _sort_if_due(self) -> None:
        if self._length - 1 - len(self._order) > max(_UNSORTED, len(self._order) // 8):
            self._take(_sorted_by_front(self.tokens))

    def _take(self, order: Ints) -> None:
        self._order = order
        self._reversed = _backwards(self.tokens[: len(order)])


def _backwards(tokens: Ints) -> bytes:
    """The tokens from last to first as big-endian numbers, GAP the smallest: bytes compare as they do."""
    return (tokens[::-1].astype(np.int64) + 1).astype(">u4").tobytes()


def _sorted_by_front(tokens: Ints) -> Ints:
    """[n - 1] positions 1 to n - 1, sorted by the LONGEST tokens in front of them read backwards.

    Prefix doubling (Manber and Myers, 1990): ranks of twice the width from pairs of ranks.
    """
    count = len(tokens) - 1
    rank = tokens[:count].astype(np.int64) + 2  # of the one token in front of position i + 1
    width = 1
    while True:
        key = rank << 32
        key[width:] |= rank[:-width] if width < count else 0
        order = np.argsort(key, kind="stable")
        ranked = key[order]
        fresh = np.concatenate([[True], ranked[1:] != ranked[:-1]])
        width *= 2
        if width >= LONGEST or bool(fresh.all()):
            return (order + 1).astype(np.int32)
        rank[order] = np.cumsum(fresh)
