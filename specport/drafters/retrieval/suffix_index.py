"""Find earlier occurrences of a context's end in a growing text.

Positions are sorted by the text before them, read backwards (the suffix array of the reversed text). So
positions with the longest match are neighbours, and one binary search finds them: the same sets, hence the
same counts, as the nodes of a suffix tree (SuffixDecoding, arXiv 2411.04975). A trie of Python objects takes
kilobytes per token, and an automaton cannot drop texts; this index takes 12 bytes per token and can be
written to a file as it is. numpy sorts it in about 0.5 µs per token; pydivsufsort takes a quarter of that,
which does not justify a compiled dependency. Tokens that were added after the last sort are scanned.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

LONGEST = 32  # maximum matched tokens; longer matches are not more reliable
GAP = -1  # separates texts: no context matches it, and no draft continues beyond it
MAX_TOKENS = 1 << 28  # positions have 32 bits, and so have ranks while sorting
_KEPT = 32  # matches that are counted; more would not change the likeliest continuation
_UNSORTED = 4096  # tokens that are scanned before a sort, or an eighth of the sorted ones if that is more

Ints = NDArray[np.int32]
_NO_PLACES: Ints = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Ending:
    """Hold the end of a context as a search key, made once for all indices.

    tokens: [LONGEST] the last token last; a shorter context is padded with a value that no token equals.
    key:    the unpadded tokens backwards as bytes, whose order is the order of the tokens.
    """

    tokens: Ints
    key: bytes

    @classmethod
    def of(cls, context: Sequence[int]) -> Ending:
        """Return the end of this context."""
        tail = list(context[-LONGEST:])
        tokens = np.array([GAP - 1] * (LONGEST - len(tail)) + tail, dtype=np.int32)
        return cls(tokens, _backwards(tokens[LONGEST - len(tail) :]))


@dataclass(frozen=True)
class Matches:
    """Hold earlier occurrences of a context's end, longest match first, latest first among equals.

    lengths: [m] matching tokens, 1 to LONGEST.
    follow:  [m, depth] tokens after each occurrence; GAP behind the end of a text.
    """

    lengths: list[int]
    follow: Ints

    def levels(self) -> Iterator[tuple[int, list[list[int]]]]:
        """Yield match lengths, longest first, with the continuations of all matches of at least that length.

        Lengths that do not double the number of matches are skipped: they would hardly change the counts.
        """
        most = len(self.lengths)
        yielded = 0
        for i, length in enumerate(self.lengths, 1):
            if i == most or (self.lengths[i] < length and i >= 2 * yielded):
                yield length, self.follow[:i].tolist()
                yielded = i


class SuffixIndex:
    """Index one text, or several with a GAP after each, for searches by the end of a context.

    order: the property `order` of an index of the same tokens, to skip the sort.

    Raises ValueError for more than MAX_TOKENS tokens, as `extend` does.
    """

    def __init__(self, tokens: Sequence[int] | Ints = (), order: Ints | None = None) -> None:
        # Padded at the front, so that the windows before all positions have the same width.
        self._buffer: Ints = np.full(LONGEST, GAP, dtype=np.int32)
        self._fronts: Ints = sliding_window_view(self._buffer, LONGEST)  # [position] tokens before it
        self._length = 0
        self._order: Ints = _NO_PLACES  # [sorted] positions, sorted by the tokens before them
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
        """Return [n - 1] all positions but the first, sorted; to be stored with the tokens."""
        if len(self._order) < self._length - 1:
            self._take(_sorted_by_front(self.tokens))
        return self._order

    def extend(self, tokens: Sequence[int] | Ints) -> None:
        """Append to the text."""
        self._append(tokens)
        self._sort_if_due()

    def find(self, ending: Ending, depth: int) -> Matches:
        """Return the longest and latest matches, and `depth` tokens after each."""
        places = self._unsorted_places(ending) if self._length > 1 else _NO_PLACES
        if len(self._order):
            places = np.concatenate([places, self._sorted_places(ending)])
        lengths = self._match_lengths(places, ending)
        if not lengths.any():  # the usual case in text that does not repeat
            return Matches([], np.empty((0, depth), np.int32))
        best = np.lexsort((-places, -lengths))[: min(_KEPT, np.count_nonzero(lengths))]
        return Matches(lengths[best].tolist(), self._behind(places[best], depth))

    def _unsorted_places(self, ending: Ending) -> Ints:
        """Return matches among the unsorted positions: at most _KEPT, the longest, then the latest."""
        first = len(self._order)
        before = self._buffer[LONGEST + first : LONGEST + self._length - 1]
        places = (np.flatnonzero(before == ending.tokens[-1]) + (first + 1)).astype(np.int32)
        back = 2
        if len(places) > _KEPT and self._match_lengths(places[-_KEPT:], ending).min() == LONGEST:
            back = LONGEST + 1  # periodic text: the latest matches are as long as any
        while len(places) > _KEPT and back <= LONGEST:
            longer = places[self._buffer[places + (LONGEST - back)] == ending.tokens[-back]]
            if len(longer) < _KEPT:
                # Fill up with the latest of the shorter matches.
                others = np.setdiff1d(places, longer, assume_unique=True)
                return np.concatenate([others[len(longer) - _KEPT :], longer])
            places = longer
            back += 1
        return places[-_KEPT:]

    def _sorted_places(self, ending: Ending) -> Ints:
        """Return the neighbours of the context's sorted position, which include the longest matches."""
        text, size, length = self._reversed, len(ending.key), len(self._reversed)

        def before(position: int) -> bytes:
            start = length - 4 * position
            return text[start : start + size]

        place = bisect_left(self._order.data, ending.key, key=before)
        return self._order[max(0, place - _KEPT) : place + _KEPT]

    def _match_lengths(self, places: Ints, ending: Ending) -> NDArray[np.int64]:
        """Return [m] how many tokens before each place equal those at the context's end."""
        differ = self._fronts[places] != ending.tokens
        lengths: NDArray[np.int64] = differ[:, ::-1].argmax(axis=1)
        lengths[(lengths == 0) & ~differ[:, -1]] = LONGEST
        return lengths

    def _behind(self, places: Ints, depth: int) -> Ints:
        """Return [m, depth] the tokens from each place on.

        A continuation that reaches the text's end repeats with its period.
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
    """Return the tokens from last to first as big-endian bytes, GAP lowest: bytes compare like tokens."""
    return (tokens[::-1].astype(np.int64) + 1).astype(">u4").tobytes()


def _sorted_by_front(tokens: Ints) -> Ints:
    """Return [n - 1] the positions 1 to n - 1, sorted by the LONGEST tokens before them, read backwards.

    Prefix doubling (Manber and Myers, 1990): pairs of ranks give the ranks of twice the width.
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
