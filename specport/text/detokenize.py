"""Stream token ids as text: whole characters, stop strings, and the drafter of each piece.

It needs only the bytes of each token.
"""

from __future__ import annotations

import codecs
import threading
from bisect import bisect_left, bisect_right
from collections import deque
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
        self._pending: deque[Span] = deque()
        self._tail = ""  # of the pending text: as much as may start a stop string
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
            return self._give(self._num_pending() - self._held())

    def finish(self) -> tuple[Span, ...]:
        """Return the remaining spans after the last token; an incomplete character becomes U+FFFD."""
        with self._lock:
            self._add(self._decoder.decode(b"", final=True))
            return self._give(self._num_pending())

    def _num_pending(self) -> int:
        return (self._num_decoded if self._cut is None else self._cut) - len(self.text)

    def _held(self) -> int:
        """Return the length of the longest pending tail that may start a stop string."""
        for start in range(len(self._tail)):
            if any(s.startswith(self._tail[start:]) for s in self._stop):
                return len(self._tail) - start
        return 0

    def _add(self, text: str) -> bool:
        """Add text. Return whether a stop string is complete. Costs no more where nobody takes."""
        if not text:
            return False
        self._pending.append((text, self._source))
        before = self._num_decoded
        self._num_decoded += len(text)
        if not self._stop:
            return False
        # What was searched before holds none: one that is complete now ends in the new text.
        fresh = self._tail + text
        starts = [found for s in self._stop if (found := fresh.find(s)) >= 0]
        if not starts:
            self._tail = fresh[-self._hold :] if self._hold else ""
            return False
        self._cut = before - len(self._tail) + min(starts)
        self._tail, self._stop = "", ()
        return True

    def _give(self, length: int) -> tuple[Span, ...]:
        given: list[Span] = []
        while length > 0 and self._pending:
            text, source = self._pending.popleft()
            given.append((text[:length], source))
            if length < len(text):
                self._pending.appendleft((text[length:], source))
            length -= len(text)
        self.text += "".join(text for text, _ in given)
        if self._cut is not None and len(self.text) >= self._cut:
            self._pending.clear()
        return tuple(given)
