"""Translate one growing sequence from the target's ids to the assistant's, and drafts back."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from specport.drafters.cross_vocab.translator import Translator

# Bytes before new text that are encoded again: enough for any word, so that old and new tokenization meet.
_LOOK_BEHIND = 48
_MARGIN = 16  # first bytes of these, where starting inside the text may have changed the tokens


class Translation:
    """Hold a target's context in the assistant's ids.

    Text between control tokens is encoded as a whole. A control token is replaced by its counterpart or
    dropped. When the context grows, only its end is encoded again, from far enough back to meet a token
    boundary of the old ids; further back where a long word has no such boundary.

    skip: number of tokens at the beginning of the context that the assistant does not read.
    """

    def __init__(self, translator: Translator, skip: int = 0) -> None:
        self._translator = translator
        bos = translator.assistant.bos
        self.ids: list[int] = [] if bos is None or skip else [bos]
        self._skipped = self._num_read = skip
        self._first = len(self.ids)  # index of the first id after the last control token
        self._text = bytearray()  # the text after the last control token
        self._ends: list[int] = []  # the byte of this text at which each of its ids ends

    @property
    def complete(self) -> bool:
        """Return whether the ids cover the text to its end; False where the assistant lacks a token."""
        return bool(self.ids) and (self._ends[-1] if self._ends else 0) == len(self._text)

    @property
    def ratio(self) -> float:
        """Return the number of assistant tokens per target token in the context so far."""
        return len(self.ids) / max(1, self._num_read - self._skipped)

    def read(self, context: Sequence[int]) -> int:
        """Translate the new tokens of an append-only context; return how many ids stayed unchanged."""
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
        """Return the target's ids for `data` after the context, each with its end as a byte of `data`.

        The ids are those of the whole text. Where the target's tokenizer has no token boundary at the end of
        the context (the target stopped inside a usual token), `data` is encoded alone. The list ends before
        a byte for which the target has no token.
        """
        target = self._translator.target
        start = self._window(len(self._text) - _LOOK_BEHIND)
        behind = len(self._text) - start
        pieces = target.encode(bytes(self._text[start:]) + data)
        first = bisect_right(pieces.ends, behind)
        if behind and (not first or pieces.ends[first - 1] != behind):
            pieces, first, behind = target.encode(data), 0, 0
        ids: list[tuple[int, int]] = []
        at = 0
        for token, end in zip(pieces.ids[first:], pieces.ends[first:], strict=True):
            at += len(target.table[token])
            if at != end - behind:
                break
            ids.append((token, at))
        return ids

    def _control(self, token: int) -> None:
        """Append the counterpart of a control token, if any, and start a new text after it."""
        counterpart = self._translator.to_assistant.get(token)
        doubled = counterpart == self._translator.assistant.bos and self.ids == [counterpart]
        if counterpart is not None and not doubled:
            self.ids.append(counterpart)
        self._first = len(self.ids)
        self._text.clear()
        self._ends = []

    def _extend(self, new: bytes) -> int:
        """Append text; return how many ids stayed unchanged."""
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
        """Return the first byte from `least` on at which both an old and a new token end, or None."""
        old = set(self._ends[bisect_left(self._ends, least) :])
        return next((end for end in ends if end in old), None)

    def _window(self, at: int) -> int:
        """Return the byte at which to start encoding, at most `at`: the start of a word or of a character."""
        if at <= 0:
            return 0
        blank = self._text.rfind(b" ", max(0, at - _LOOK_BEHIND), at)
        if blank >= 0:
            return blank
        back = next((n for n in range(4) if self._text[at - n] & 0xC0 != 0x80), 0)
        return max(0, at - back)
