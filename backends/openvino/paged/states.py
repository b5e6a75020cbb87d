"""Recurrent states of a hybrid model: which of them are kept, shared and dropped. Runs no graph.

What linear attention and short convolutions know of a text is one state of fixed size, which cannot be cut
back by a token. OpenVINO's paged operators read the state before a step from one block and write states
behind the step's tokens to others, so that going back is choosing a block. A block holds the state of all
layers behind one token, and is not written again while anybody has it: sequences with a common beginning
share it.

A state can always be computed again from the tokens, so the states behind a sequence's last one are spare:
they are dropped where room is needed, oldest first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import openvino as ov
from specport.backends.openvino.paged.pool import BlockPool
from specport.backends.openvino.request import Request

EMPTY, WASTE = 0, 1  # the state before the first token; where states go that nobody wants
_TABLES = ("conv_state_table.", "gated_delta_state_table.")
_FEWEST = 6  # blocks: the cache's own, and enough for one sequence to go on
_NEAR = 16  # tokens; going back by fewer costs one narrow step wherever a state is


def is_state(port: ov.Output) -> bool:
    """Return whether an input of a paged model is one of its tables of states."""
    return any(name.startswith(_TABLES) for name in port.names)


@dataclass(frozen=True, eq=False)
class Mark:
    """A state that is kept: the one behind the first `length` tokens of a text, in `block`."""

    length: int
    block: int


@dataclass
class History:
    """Hold a sequence's tokens and the states along it, in ascending order."""

    tokens: list[int] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    @property
    def known(self) -> int:
        """Return the number of tokens behind which the last state is."""
        return self.marks[-1].length if self.marks else 0

    @property
    def state(self) -> int:
        """Return the block of the last state."""
        return self.marks[-1].block if self.marks else EMPTY


class StateCache:
    """The tables of states of a model, and the blocks in them.

    max_blocks, max_bytes: as for `BlockPool`; two blocks are the cache's own.
    recent: states behind the last so many tokens are all kept, for a sequence that often goes back a little.
    """

    def __init__(self, request: Request, max_blocks: int, max_bytes: int | None, recent: int = 1) -> None:
        ports = [(request, port) for port in filter(is_state, request.compiled.inputs)]
        self._pool = BlockPool(ports, max_blocks, max_bytes)
        self._recent = recent
        self._spare: dict[Mark, History] = {}  # oldest first
        self._holders: set[int] = set()  # ids of the histories that have a state
        self._usable = self._pool.max_blocks >= _FEWEST
        if self._usable:
            (*own,) = self.take(2)
            assert own == [EMPTY, WASTE]
        self.bytes_for = self._pool.bytes_for

    @property
    def max_blocks(self) -> int:
        return self._pool.max_blocks

    @property
    def num_used(self) -> int:
        """Return the number of blocks with states, spare ones too."""
        return self._pool.num_used - 2

    @property
    def nbytes(self) -> int:
        return self._pool.nbytes

    def has_room(self) -> bool:
        """Return whether one more sequence could have a state, while each that has one takes another."""
        return self._usable and self.num_extra >= 0

    @property
    def num_extra(self) -> int:
        """Return the number of blocks that are left after one more for each sequence, and one for another."""
        return self._num_left() - len(self._holders) - 1

    def take(self, count: int) -> list[int]:
        """Return so many blocks; none where there are not so many. Spare states are dropped for them."""
        if count > self._num_left():
            return []
        while not self._pool.provide(count):
            if not self._drop_spare():
                return []
        return [self._pool.take() for _ in range(count)]

    def give_back(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._pool.give_back(block)

    def add(self, history: History, marks: Sequence[Mark]) -> None:
        """Add states behind the others of a sequence, and drop those that are of little use now."""
        every = [*history.marks, *marks]
        kept = self._thinned(every)
        self.give_back(mark.block for mark in every if mark not in kept)
        self._replace(history, kept)

    def cut(self, history: History, length: int) -> None:
        """Cut a sequence back to its first tokens."""
        del history.tokens[length:]
        kept = [mark for mark in history.marks if mark.length <= length]
        self.give_back(mark.block for mark in history.marks[len(kept) :])
        self._replace(history, kept)

    def fork(self, history: History, length: int) -> History:
        """Return the history of the first tokens of a sequence; it shares the states."""
        marks = [Mark(mark.length, mark.block) for mark in history.marks if mark.length <= length]
        for mark in marks:
            self._pool.share(mark.block)
        fork = History(history.tokens[:length])
        self._replace(fork, marks)
        return fork

    def _replace(self, history: History, marks: list[Mark]) -> None:
        for mark in history.marks:
            if mark not in marks:
                self._spare.pop(mark, None)
        history.marks = marks
        for mark in marks[:-1]:
            self._spare.setdefault(mark, history)
        if marks:
            self._spare.pop(marks[-1], None)
            self._holders.add(id(history))
        else:
            self._holders.discard(id(history))

    def _thinned(self, marks: Sequence[Mark]) -> list[Mark]:
        """Return the states to keep: the last, the recent, and fewer the further back.

        Each is at most twice as far back as the next. So going back by n tokens computes fewer than n again,
        or _NEAR, and the number of states grows with the logarithm of the text's length.
        """
        end = marks[-1].length
        first = next(i for i, mark in enumerate(marks) if end - mark.length < self._recent)
        older, kept = list(marks[:first]), list(marks[first:])
        while older:
            reach = max(_NEAR, 2 * (end - kept[0].length))
            within = (i for i, mark in enumerate(older) if end - mark.length <= reach)
            nearest = next(within, len(older) - 1)
            kept.insert(0, older[nearest])
            del older[nearest:]
        return kept

    def _num_left(self) -> int:
        """Return the number of blocks that are free, could be added, or are spare to all their users."""
        spare = Counter(mark.block for mark in self._spare)
        return self._pool.num_left + sum(n == self._pool.num_users(block) for block, n in spare.items())

    def _drop_spare(self) -> bool:
        """Drop spare states until a block is free; return False where there is none."""
        while self._spare:
            mark, history = next(iter(self._spare.items()))
            del self._spare[mark]
            history.marks.remove(mark)
            if self._pool.give_back(mark.block):
                return True
        return False
