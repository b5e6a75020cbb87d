"""Passes one reply on to a client, and decides what happens where the replica that gives it is lost.

Nothing was told yet: another replica gets the request. Else the reply ends with an error, as OpenAI's would.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from specport.serve.openai.errors import ApiError, response
from specport.serve.openai.streaming import BEAT, DONE, event
from specport.serve.ray.calls import Head

TRIES = 3  # replicas that a request may lose
_OPENING = {"role": "assistant", "content": ""}  # what a chat's stream says before its first token
Open = Callable[[], AsyncGenerator[Head | bytes, None]]


class Lost(Exception):
    """The replica that was answering is gone."""


class Relay:
    """Pass a reply on, once.

    open: asks a replica, another one after the loss of the first. Its iterator raises Lost.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, open: Open) -> None:
        self._scope, self._receive, self._send, self._open = scope, receive, send, open
        self._head: Head | None = None  # of the present try
        self._started = False  # a head was sent
        self._told = False  # something of the answer was sent
        self._complete = False  # all of the answer was sent
        self._held: list[bytes] = []  # the beginning of a stream that says nothing yet

    async def run(self) -> None:
        """Answer the client."""
        for _ in range(TRIES):
            self._head, self._held = None, []
            try:
                async with aclosing(self._open()) as parts:
                    async for part in parts:
                        await self._take(part)
                break
            except Lost:
                if self._told:
                    break
                self._head = None  # a head alone is no answer
        if self._head is not None and (self._complete or not self._streams):
            await self._body(b"".join(self._held), more=False)
        else:
            await self.fail(ApiError(503, "the replica that was answering is gone", code="replica_lost"))

    async def fail(self, error: ApiError) -> None:
        """End with an error: the reply's last event where a stream has begun."""
        if self._started:
            await self._body(event(error.body()) + DONE, more=False)
        else:
            await response(error)(self._scope, self._receive, self._send)

    @property
    def _streams(self) -> bool:
        assert self._head is not None
        return any(name == b"content-type" and b"event-stream" in value for name, value in self._head.headers)

    async def _take(self, part: Head | bytes) -> None:
        if isinstance(part, Head):
            self._head = part
        elif not self._streams:
            if self._started:  # by a try before this one: the error becomes an event of its stream
                part = b"data: " + part + b"\n\n" + DONE
            await self._body(part)
            self._told = self._complete = True
        elif self._told or (part := await self._opened(part)):
            self._told = True
            self._complete = part.endswith(DONE)
            await self._body(part)

    async def _opened(self, part: bytes) -> bytes:
        """Return what is to be sent of the first events; empty while they say nothing.

        Only a sign of life is passed on at once: it commits to no answer.
        """
        events = [each + b"\n\n" for each in part.split(b"\n\n")[:-1]]
        for number, each in enumerate(events):
            if each == BEAT:
                await self._body(BEAT)
            elif _opens(each):
                self._held.append(each)
            else:
                held, self._held = self._held, []
                return b"".join([*held, *events[number:]])
        return b""

    async def _body(self, part: bytes, *, more: bool = True) -> None:
        if not self._started:
            assert self._head is not None
            self._started = True
            head = {"status": self._head.status, "headers": self._head.headers}
            await self._send({"type": "http.response.start", **head})
        await self._send({"type": "http.response.body", "body": part, "more_body": more})


def _opens(event: bytes) -> bool:
    """Return whether an event only says who speaks."""
    if len(event) > 1000 or not event.startswith(b"data: {"):
        return False
    choices = json.loads(event[6:]).get("choices", [])
    return bool(choices) and all(c.get("delta") == _OPENING and not c.get("finish_reason") for c in choices)
