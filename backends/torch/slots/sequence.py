"""Hold what belongs to one sequence: its slot, and which entries of the slot hold its states. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from specport.backends.torch.slots.states import EMPTY, UNREAD

from specport.core.ports import CachedSequence


@dataclass
class History:
    """Hold a sequence's committed tokens, and which entries hold its states.

    at:     number of tokens -> entry of the state behind them.
    marks:  numbers of tokens whose entries are not given to other states: ends of long reads.
    placed: entries that the last step wrote: one a token, or those of the pieces of a long row.
    """

    tokens: list[int] = field(default_factory=list)
    at: dict[int, int] = field(default_factory=lambda: {0: EMPTY})
    marks: list[int] = field(default_factory=list)
    placed: tuple[int, ...] = ()

    def nearest(self, length: int) -> int:
        """Return the largest number of tokens up to `length` whose state is held."""
        return max(held for held in self.at if held <= length)

    def cut(self, length: int) -> None:
        """Forget all behind the first `length` tokens."""
        del self.tokens[length:]
        self.at = {held: entry for held, entry in self.at.items() if held <= length}
        self.marks = [mark for mark in self.marks if mark <= length]
        self.placed = ()

    def take(self, count: int, base: int) -> tuple[int, ...]:
        """Return entries to write to: unused ones first, then those of the oldest states.

        base: number of tokens whose entry is read by the step.
        """
        fixed = {self.at[held] for held in (0, base, *self.marks)}
        held = {entry: length for length, entry in self.at.items()}
        free = [entry for entry in range(EMPTY + 1, UNREAD) if entry not in fixed]
        taken = sorted(free, key=lambda entry: held.get(entry, -1))[:count]
        self.at = {length: entry for length, entry in self.at.items() if entry not in taken}
        return tuple(taken)


@dataclass
class SlotSequence(CachedSequence):
    """Hold one sequence's slot.

    closed:  whether the slot was given back.
    drafted: tokens behind the committed ones whose exit queries are held.
    history: its states, where the decoder has them.
    """

    slot: int
    closed: bool = False
    drafted: tuple[int, ...] = ()
    history: History = field(default_factory=History)

    def settle(self, length: int) -> None:
        """Set the number of committed tokens; nothing is pending or drafted behind them."""
        super().settle(length)
        self.drafted = ()
