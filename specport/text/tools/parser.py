"""Read calls out of a text while it streams. A model's text is untrusted: sizes and depth are bounded."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specport.text.tools.bodies import Body, JsonBody, NamedBody, XmlBody
from specport.text.tools.definitions import Tool, ToolCall
from specport.text.tools.json_value import Step
from specport.text.tools.syntax import Syntax

MAX_CALL = 1 << 18  # characters of one call
MAX_CALLS = 128
_BLANK = " \t\r\n"


@dataclass(frozen=True)
class TextDelta:
    """Hold new text of the answer."""

    text: str

    def as_openai(self) -> dict[str, Any]:
        return {"content": self.text}


@dataclass(frozen=True)
class CallDelta:
    """Hold a new piece of a call. id and name come with its first piece only; arguments are JSON text."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None

    def as_openai(self) -> dict[str, Any]:
        function: dict[str, Any] = {"arguments": self.arguments}
        if self.id is None:
            return {"tool_calls": [{"index": self.index, "function": function}]}
        function = {"name": self.name, **function}
        call = {"index": self.index, "id": self.id, "type": "function", "function": function}
        return {"tool_calls": [call]}


Delta = TextDelta | CallDelta


@dataclass
class _Call:
    """Hold the call that is being read. raw: all of its text, markers included."""

    raw: str
    body: Body | None = None
    index: int | None = None  # None until the first delta
    id: str = ""
    num_given: int = 0  # characters of the arguments that were given out


@dataclass
class ToolParser:
    """Split a text into its content and its calls.

    `feed` and `finish` return what is new. A call is begun there as soon as its name is known to be a tool's
    and its arguments have begun. What turns out not to be a call is text. A call that has begun and breaks
    off gets no more deltas; `content`, which is for those who do not stream, has all of its text instead.

    content: the text without calls. calls: the complete ones.
    """

    syntax: Syntax
    tools: Sequence[Tool]
    content: str = field(default="", init=False)
    calls: list[ToolCall] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._known = {tool.name: tool for tool in self.tools}
        self._call: _Call | None = None
        self._after = False  # whether a call was just read: blanks and its closing marker may follow
        self._listed = False  # whether it stands in an array
        self._held = ""  # text that may begin a marker, or stand between calls
        self._num_begun = 0
        self._deltas: list[Delta] = []

    def feed(self, text: str) -> list[Delta]:
        """Read more of the text."""
        for char in text:
            self._read(char)
        return self._taken()

    def finish(self) -> list[Delta]:
        """Read the end of the text."""
        if self._call is not None:
            self._broken(self._call)
        if not (self._after and not self._held.strip()):
            self._say(self._held)
        self._held, self._after = "", False
        return self._taken()

    def _taken(self) -> list[Delta]:
        """Return the new deltas, neighbours joined."""
        joined: list[Delta] = []
        for delta in self._deltas:
            last = joined[-1] if joined else None
            if isinstance(delta, TextDelta) and isinstance(last, TextDelta):
                joined[-1] = TextDelta(last.text + delta.text)
            elif isinstance(delta, CallDelta) and isinstance(last, CallDelta) and delta.index == last.index:
                joined[-1] = CallDelta(last.index, last.arguments + delta.arguments, last.id, last.name)
            else:
                joined.append(delta)
        self._deltas = []
        return joined

    def _read(self, char: str) -> None:
        if self._call is not None:
            self._in_call(self._call, char)
        elif self._after:
            self._behind_call(char)
        else:
            self._in_text(char)

    def _in_text(self, char: str) -> None:
        self._held += char
        bare = self.syntax.bare and not self._num_begun and not self.content
        if bare and char == "{" and not self._held[:-1].strip():
            self._begin(self._held[:-1])
            self._read(char)
        elif self._held.endswith(self.syntax.opening):
            marker = self.syntax.opening
            self._say(self._held.removesuffix(marker))
            self._begin(marker)
        elif not (bare and not self._held.strip()):
            kept = _begun(self._held, self.syntax.opening)
            self._say(self._held[: len(self._held) - kept])
            self._held = self._held[len(self._held) - kept :]

    def _begin(self, raw: str) -> None:
        self._call, self._held, self._listed = _Call(raw), "", False

    def _in_call(self, call: _Call, char: str) -> None:
        call.raw += char
        if call.body is None:
            if char in _BLANK:
                return
            if char == "[" and self.syntax.array and not self._listed:
                self._listed = True
                return
            if self._num_begun >= MAX_CALLS:
                self._broken(call)
                return
            call.body = self._body(char)
        step = call.body.feed(char) if len(call.raw) <= MAX_CALL else Step.BAD
        if step != Step.BAD:
            self._give(call, call.body)
        if step == Step.DONE:
            self.calls.append(ToolCall(call.id, call.body.name, call.body.arguments))
            self._call, self._after = None, True
        elif step != Step.MORE:
            self._broken(call, char)

    def _body(self, char: str) -> Body:
        if self.syntax.body == "xml" and char != "{":
            return XmlBody(self._known)
        return NamedBody(self._known) if self.syntax.array and char != "{" else JsonBody(self._known)

    def _give(self, call: _Call, body: Body) -> None:
        """Give out what is new of a call whose name is known."""
        if not body.name or len(body.arguments) == call.num_given:
            return
        new = body.arguments[call.num_given :]
        call.num_given = len(body.arguments)
        if call.index is not None:
            self._deltas.append(CallDelta(call.index, new))
            return
        call.index, call.id = self._num_begun, _new_id(short=self.syntax.short_ids)
        self._num_begun += 1
        self._deltas.append(CallDelta(call.index, new, call.id, body.name))

    def _broken(self, call: _Call, char: str = "") -> None:
        """Give the text of a call back as text. char: the last of it, which may begin another marker."""
        self._call = None
        raw = call.raw.removesuffix(char)
        if call.index is None:
            self._say(raw)
        else:
            self.content += raw
        if char:
            self._read(char)

    def _behind_call(self, char: str) -> None:
        """Skip blanks, the closing marker and what separates calls; all else is text again."""
        self._held += char
        found = self._held.lstrip()
        if not found or (self.syntax.closing and self.syntax.closing.startswith(found)):
            if found and found == self.syntax.closing:
                self._held = ""
            return
        if self._listed and found in (",", "]"):
            self._held = ""
            if found == ",":
                self._call = _Call("")
            else:
                self._listed = False
            return
        if self.syntax.bare and not found.strip(";" + _BLANK):
            return
        if self.syntax.bare and found.lstrip(";" + _BLANK) == "{":
            self._call, self._held = _Call(self._held[:-1]), ""
            self._read(char)
            return
        if self.syntax.opening.startswith(found):
            if found == self.syntax.opening:
                self._begin(self._held)
            return
        held, self._held, self._after = self._held, "", False
        for again in held:
            self._in_text(again) if self._call is None else self._in_call(self._call, again)

    def _say(self, text: str) -> None:
        if text:
            self.content += text
            self._deltas.append(TextDelta(text))


def _begun(text: str, marker: str) -> int:
    """Return the length of the longest end of a text that begins a marker."""
    longest = min(len(text), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if marker.startswith(text[-n:])), 0)


def _new_id(*, short: bool) -> str:
    if short:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"
