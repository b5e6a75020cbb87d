"""Token ids to streamed text: whole characters, stop strings, and who proposed each piece.

Knows a tokenizer's bytes, nothing of models.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

Span = tuple[str, str]  # (text, name of the drafter that proposed it; "" = the target's own choice)


class Detokenizer(Protocol):
    """What streaming needs of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token: int) -> bytes: ...


class TextStream:
    """Collects output tokens; gives out text that can no longer change.

    A character is held back until all its bytes are there, and text that may be the start of a stop
    string until it is decided. `text` is what has been given out so far, without any stop string.
    """

    def __init__(self, tokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._hold = max((len(s) - 1 for s in self._stop), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending: list[Span] = []
        self._source = ""
        self.text = ""

    def push(self, token: int, source: str = "") -> bool:
        """Take one output token; True when a stop string is complete, which is then cut away."""
        if token in self._tokenizer.special_ids:
            return False
        self._source = source
        return self._add(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def take(self) -> tuple[Span, ...]:
        """The spans that are final and have not been given out before."""
        return self._give(self._length() - self._held())

    def finish(self) -> tuple[Span, ...]:
        """The rest, once no more tokens come; a cut-off character becomes U+FFFD."""
        self._add(self._decoder.decode(b"", final=True))
        return self._give(self._length())

    def _length(self) -> int:
        return sum(len(text) for text, _ in self._pending)

    def _held(self) -> int:
        """Length of the longest pending tail that a stop string may begin with."""
        tail = "".join(text for text, _ in self._pending)[-self._hold :] if self._hold else ""
        for start in range(len(tail)):
            if any(s.startswith(tail[start:]) for s in self._stop):
                return len(tail) - start
        return 0

    def _add(self, text: str) -> bool:
        if not text:
            return False
        self._pending.append((text, self._source))
        if not self._stop:
            return False
        pending = "".join(piece for piece, _ in self._pending)
        ends = [found for s in self._stop if (found := pending.find(s)) >= 0]
        if not ends:
            return False
        self._pending = list(_split(self._pending, min(ends))[0])
        self._hold, self._stop = 0, ()
        return True

    def _give(self, length: int) -> tuple[Span, ...]:
        given, self._pending = _split(self._pending, length)
        self.text += "".join(text for text, _ in given)
        return tuple(given)


def _split(spans: Sequence[Span], length: int) -> tuple[list[Span], list[Span]]:
    """The first `length` characters of the spans, and the rest."""
    first: list[Span] = []
    rest: list[Span] = []
    for text, source in spans:
        cut = max(0, min(length, len(text)))
        length -= cut
        if cut:
            first.append((text[:cut], source))
        if cut < len(text):
            rest.append((text[cut:], source))
    return first, rest
