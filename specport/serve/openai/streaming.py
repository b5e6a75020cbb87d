"""Server-sent events, and clients that go away or do not read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from specport.serve.openai.errors import json_bytes

DONE = b"data: [DONE]\n\n"
BEAT = b": waiting\n\n"  # a comment, which clients skip
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class ClientGone(Exception):
    """The client closed the connection."""


def event(content: Mapping[str, Any]) -> bytes:
    """Return one event."""
    return b"data: " + json_bytes(content) + b"\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what `work` returns. Raises ClientGone, with the work cancelled, when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
                with suppress(asyncio.CancelledError):
                    await each


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A reply of server-sent events.

    close:   called at the end: after the last event, when the client goes away, or when it does not take a
             piece within `seconds`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None], seconds: float) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close, self._seconds = events, close, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(send))
        except ClientGone:
            pass
        except asyncio.TimeoutError:
            _log.warning("a client did not read its stream for %g s", self._seconds)
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for part in self._events:
            await self._sent(send, part, more=True)
        await self._sent(send, b"", more=False)

    async def _sent(self, send: Send, part: bytes, *, more: bool) -> None:
        message = {"type": "http.response.body", "body": part, "more_body": more}
        await asyncio.wait_for(send(message), self._seconds)
