"""Requests and replies on their way between the front and a replica: calls of an application in a process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Scope

Headers = list[tuple[bytes, bytes]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """Hold a request whose sender was let in.

    client: who asks; clients take turns.
    names:  of the blocks of its prompt, see `prefixes`.
    """

    method: str
    path: str
    query: bytes = b""
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    client: str = ""
    names: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Head:
    """Hold the beginning of a reply. Pieces of its body follow, as bytes."""

    status: int
    headers: Headers


async def answered(app: ASGIApp, call: Call) -> AsyncIterator[Head | bytes]:
    """Yield the reply of an application: its head, and what there is of its body, in few pieces.

    Closing the iterator tells the application that its client has gone.
    """
    messages: asyncio.Queue[Message] = asyncio.Queue()
    bodies, gone = [call.body], asyncio.Event()

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.put_nowait(message)

    def ended(task: asyncio.Future[None]) -> None:
        messages.put_nowait({"type": "end"})
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s %s failed", call.method, call.path, exc_info=error)

    task = asyncio.ensure_future(app(_scope(call), receive, send))
    task.add_done_callback(ended)
    try:
        more = True
        while more:
            head, body, more = _gathered(await messages.get(), messages)
            if head is not None:
                yield head
            if body:
                yield body
    finally:
        gone.set()
        task.cancel()


def _gathered(first: Message, messages: asyncio.Queue[Message]) -> tuple[Head | None, bytes, bool]:
    """Return the head, the body and whether more comes, of a message and those that wait behind it."""
    head: Head | None = None
    parts: list[bytes] = []
    message = first
    while True:
        kind = message["type"]
        if kind == "http.response.start":
            head = Head(message["status"], [*message["headers"]])
        elif kind == "http.response.body":
            parts.append(message.get("body", b""))
        if kind == "end" or (kind == "http.response.body" and not message.get("more_body", False)):
            return head, b"".join(parts), False
        if messages.empty():
            return head, b"".join(parts), True
        message = messages.get_nowait()


def _scope(call: Call) -> Scope:
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": call.method, "scheme": "http", "path": call.path, "raw_path": call.path.encode(),
        "query_string": call.query, "root_path": "", "headers": call.headers, "client": (call.client, 0),
        "server": None,
    }  # fmt: skip
    return scope
