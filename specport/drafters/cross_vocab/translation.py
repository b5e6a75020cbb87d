"""One sequence in the ids of two vocabularies, kept up to date as it grows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from specport.drafters.cross_vocab.translator import Translator

# Bytes encoded again before new text: enough for any word, so that both ways of cutting it meet again.
_LOOK_BEHIND = 48
_MARGIN = 16  # bytes at the beginning of that which the cut may have spoilt


class Translation:
    """A target's context in the assistant's ids.

    Text between control tokens is encoded as a whole; a control token is replaced by its counterpart or
    left out. When the context grows, only its end is encoded anew: far enough back that a token boundary
    of the old ids is found again, and further where a long word has none.

    skip: tokens at the beginning of the context that the assistant is not to see.
    """

    def __init__(self, translator: Translator, skip: int = 0) -> None:
        self._translator = translator
        bos = translator.assistant.bos
        self.ids: list[int] = [] if bos is None or skip else [bos]
        self._skipped = self._num_read = skip
        self._first = len(self.ids)  # where the ids of the text behind the last control token begin
        self._text = bytearray()  # that text
        self._ends: list[int] = []  # the byte of it at which each of its ids ends

    @property
    def complete(self) -> bool:
        """Whether the ids reach to the end of the text; not where the assistant has no token for it."""
        return bool(self.ids) and (self._ends[-1] if self._ends else 0) == len(self._text)

    @property
    def ratio(self) -> float:
        """Assistant tokens for one of the target's, in the context so far."""
        return len(self.ids) / max(1, self._num_read - self._skipped)

    def read(self, context: Sequence[int]) -> int:
        """Take what is new in an append-only context. Returns how many ids stayed as they were."""
        target = self._translator.target
        kept = len(self.ids)
        text = bytearray()
        for token in context[self._num_read :]:
            if token in target.special_ids:
                kept = min(kept, self._extend(bytes(text)))
                text.clear()
                self._control(token)
            else:
                text += target.table.get(token, b"")
        self._num_read = len(context)
        return min(kept, self._extend(bytes(text)))

    def to_target(self, data: bytes) -> list[tuple[int, int]]:
        """The target's ids for `data` behind the context, each with the byte of `data` at which it ends.

        They are what the target's tokenizer gives for the text as a whole. Where it would not part the
        text here (the target stopped inside what its tokenizer makes one token), `data` stands alone.
        Ends before a byte for which the target has no token.
        """
        target = self._translator.target
        start = self._window(len(self._text) - _LOOK_BEHIND)
        behind = len(self._text) - start
        pieces = target.encode(bytes(self._text[start:]) + data)
        first = bisect_right(pieces.ends, behind)
        if behind and (not first or pieces.ends[first - 1] != behind):
            pieces, first, behind = target.encode(data), 0, 0
        found: list[tuple[int, int]] = []
        at = 0
        for token, end in zip(pieces.ids[first:], pieces.ends[first:], strict=True):
            at += len(target.table[token])
            if at != end - behind:
                break
            found.append((token, at))
        return found

    def _control(self, token: int) -> None:
        counterpart = self._translator.to_assistant.get(token)
        doubled = counterpart == self._translator.assistant.bos and self.ids == [counterpart]
        if counterpart is not None and not doubled:
            self.ids.append(counterpart)
        self._first = len(self.ids)
        self._text.clear()
        self._ends = []

    def _extend(self, new: bytes) -> int:
        """Append text; returns how many ids stayed as they were."""
        if not new:
            return len(self.ids)
        back = len(self._text) - _LOOK_BEHIND
        self._text += new
        joint: int | None = None
        while joint is None:
            start = self._window(back)
            pieces = self._translator.assistant.encode(bytes(self._text[start:]))
            ends = [start + end for end in pieces.ends]
            joint = self._joint(ends, start + _MARGIN) if start else 0
            back = start - 2 * (len(self._text) - start)
        old, fresh = bisect_right(self._ends, joint), bisect_right(ends, joint)
        tail = pieces.ids[fresh:]
        kept = self._first + old
        same = 0
        while kept + same < len(self.ids) and same < len(tail) and self.ids[kept + same] == tail[same]:
            same += 1
        self.ids[kept:] = tail
        self._ends[old:] = ends[fresh:]
        return kept + same

    def _joint(self, ends: Sequence[int], least: int) -> int | None:
        """The first byte from `least` on at which a token ends in the old ids as in the new ones."""
        old = set(self._ends[bisect_left(self._ends, least) :])
        return next((end for end in ends if end in old), None)

    def _window(self, at: int) -> int:
        """Where to begin encoding, at `at` or before: before a word, else at least before a character."""
        if at <= 0:
            return 0
        blank = self._text.rfind(b" ", max(0, at - _LOOK_BEHIND), at)
        if blank >= 0:
            return blank
        back = next((n for n in range(4) if self._text[at - n] & 0xC0 != 0x80), 0)
        return max(0, at - back)
