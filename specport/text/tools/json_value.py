"""Check JSON one character at a time, as text streams. A model's text is untrusted: depth is bounded."""

from __future__ import annotations

import re
from enum import Enum

MAX_DEPTH = 64
_BLANK = " \t\r\n"
_WORD = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_IN_WORD = frozenset("0123456789abcdefghijklmnopqrstuvwxyzE+-.")
_LONGEST_WORD = 400


class Step(Enum):
    """Say what a character did: the value goes on, ends with it, ended before it, or is broken by it."""

    MORE = 1
    DONE = 2
    PAST = 3
    BAD = 4


class JsonValue:
    """Read one JSON value. Only numbers and words end before a character (`Step.PAST`)."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._expected = "value"  # value, value or ], key, key or }, colon, next, string, word
        self._is_key = self._escaped = False
        self._hex = 0  # digits of \uXXXX to come
        self._word = ""

    def feed(self, char: str) -> Step:
        """Read one character. Not to be called after anything but `Step.MORE`."""
        if self._expected == "string":
            return self._string(char)
        if self._expected == "word":
            if char in _IN_WORD and len(self._word) < _LONGEST_WORD:
                self._word += char
                return Step.MORE
            if not _WORD.fullmatch(self._word):
                return Step.BAD
            if not self._open:
                return Step.PAST
            self._expected = "next"
        if char in _BLANK:
            return Step.MORE
        return self._structure(char)

    def _string(self, char: str) -> Step:
        if self._hex:
            self._hex -= 1
            return Step.MORE if char in "0123456789abcdefABCDEF" else Step.BAD
        if self._escaped:
            self._escaped = False
            self._hex = 4 if char == "u" else 0
            return Step.MORE if char in '"\\/bfnrtu' else Step.BAD
        if char == '"':
            if self._is_key:
                self._expected = "colon"
                return Step.MORE
            return self._ended()
        self._escaped = char == "\\"
        return Step.BAD if char < " " else Step.MORE

    def _structure(self, char: str) -> Step:  # noqa: PLR0911
        expected = self._expected
        if expected == "colon":
            self._expected = "value"
            return Step.MORE if char == ":" else Step.BAD
        if expected == "next":
            if char == ",":
                self._expected = "key" if self._open[-1] == "{" else "value"
                return Step.MORE
            return self._closed(char)
        if char in "}]" and expected in ("key or }", "value or ]"):
            return self._closed(char)
        if expected in ("key", "key or }"):
            self._expected, self._is_key = "string", True
            return Step.MORE if char == '"' else Step.BAD
        if char in "{[":
            self._open.append(char)
            self._expected = "key or }" if char == "{" else "value or ]"
            return Step.MORE if len(self._open) <= MAX_DEPTH else Step.BAD
        if char == '"':
            self._expected, self._is_key = "string", False
        elif char in "-0123456789tfn":
            self._expected, self._word = "word", char
        else:
            return Step.BAD
        return Step.MORE

    def _closed(self, char: str) -> Step:
        if {"}": "{", "]": "["}.get(char) != self._open[-1]:
            return Step.BAD
        self._open.pop()
        return self._ended()

    def _ended(self) -> Step:
        self._expected = "next"
        return Step.MORE if self._open else Step.DONE
