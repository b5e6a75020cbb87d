"""HTTP connections with time limits that uvicorn lacks: for the head of a request, and for slow readers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_log = logging.getLogger(__name__)


class TimedProtocol(H11Protocol):
    """Close connections that wait for their client: many would keep others out (slowloris).

    header_seconds: for the head of a request, from the connection's start or the head's first byte on.
                    Between requests uvicorn's own limit holds, and for the body that of `BodyReader`.
    send_seconds:   for a client to take what was sent, once the buffers are full.
    """

    header_seconds = 10.0
    send_seconds = 60.0
    _heading: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self._later(self.send_seconds, self._unread)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_sending()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_heading()
        self._stop_sending()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_heading()
        elif self._heading is None:
            self._heading = self._later(self.header_seconds, self._late)

    def _later(self, seconds: float, act: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, act)

    def _late(self) -> None:
        self._heading = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()

    def _unread(self) -> None:
        _log.warning("a client did not read for %g s", self.send_seconds)
        self.transport.abort()  # what is in the buffers would else wait for ever

    def _stop_heading(self) -> None:
        if self._heading is not None:
            self._heading.cancel()
            self._heading = None

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
