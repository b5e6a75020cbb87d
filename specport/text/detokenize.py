"""Stream token ids as text: whole characters, stop strings, and the drafter of each piece.

It needs only the bytes of each token.
"""

from __future__ import annotations

import codecs
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Protocol

Span = tuple[str, str]  # (text, name of the drafter that proposed it; "" = the target's own choice)


class Detokenizer(Protocol):
    """What streaming needs of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token: int) -> bytes: ...


class TextStream:
    """Collect output tokens and give out text that can no longer change.

    A character is held back until all its bytes have arrived. Text that may start a stop string is held
    back until that is decided. `text` is all text given out so far, without any stop string; `num_given` and
    `num_tokens` say which tokens it is made of.

    shown: control tokens whose texts are part of the text.

    One thread may push while another takes, since sequences of several threads share the engine's steps.
    """

    def __init__(
        self, tokenizer: Detokenizer, stop: Sequence[str] = (), shown: frozenset[int] = frozenset()
    ) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids - shown
        self._stop = tuple(stop)
        self._hold = max((len(s) - 1 for s in self._stop), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending: list[Span] = []
        self._source = ""
        self._num_decoded = 0  # characters
        self._ends: list[int] = []  # of each token: characters decoded up to its end
        self._cut: int | None = None  # characters before a stop string
        self._lock = threading.Lock()
        self.text = ""

    def push(self, token: int, source: str = "") -> bool:
        """Add one output token. Return True when a stop string is complete, which is then cut off."""
        special = token in self._hidden
        piece = b"" if special else self._tokenizer.token_bytes(token)
        with self._lock:
            if special:
                self._ends.append(self._num_decoded)
                return False
            self._source = source
            text = self._decoder.decode(piece)
            self._ends.append(self._num_decoded + len(text))
            return self._add(text)

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens so far, without those that lie in a stop string as a whole."""
        with self._lock:
            return self._num_kept()

    @property
    def num_given(self) -> int:
        """Return the number of tokens whose text was given out, as far as it is not cut off."""
        with self._lock:
            kept = self._num_kept()
            whole = self._cut is not None and len(self.text) == self._cut
            return kept if whole else min(kept, bisect_right(self._ends, len(self.text)))

    def _num_kept(self) -> int:
        if self._cut is None:
            return len(self._ends)
        # A token begins where the one before it ends.
        return min(len(self._ends), bisect_left(self._ends, self._cut) + 1) if self._cut else 0

    def take(self) -> tuple[Span, ...]:
        """Return the spans that are final and have not been given out before."""
        with self._lock:
            return self._give(self._length() - self._held())

    def finish(self) -> tuple[Span, ...]:
        """Return the remaining spans after the last token; an incomplete character becomes U+FFFD."""
        with self._lock:
            self._add(self._decoder.decode(b"", final=True))
            return self._give(self._length())

    def _length(self) -> int:
        return sum(len(text) for text, _ in self._pending)

    def _held(self) -> int:
        """Return the length of the longest pending tail that may start a stop string."""
        tail = "".join(text for text, _ in self._pending)[-self._hold :] if self._hold else ""
        for start in range(len(tail)):
            if any(s.startswith(tail[start:]) for s in self._stop):
                return len(tail) - start
        return 0

    def _add(self, text: str) -> bool:
        if not text:
            return False
        self._pending.append((text, self._source))
        self._num_decoded += len(text)
        if not self._stop:
            return False
        pending = "".join(piece for piece, _ in self._pending)
        ends = [found for s in self._stop if (found := pending.find(s)) >= 0]
        if not ends:
            return False
        self._pending = list(_split(self._pending, min(ends))[0])
        self._cut = len(self.text) + min(ends)
        self._hold, self._stop = 0, ()
        return True

    def _give(self, length: int) -> tuple[Span, ...]:
        given, self._pending = _split(self._pending, length)
        self.text += "".join(text for text, _ in given)
        return tuple(given)


def _split(spans: Sequence[Span], length: int) -> tuple[list[Span], list[Span]]:
    """Return the first `length` characters of the spans, and the rest."""
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
