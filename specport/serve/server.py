"""The server's process: its socket, its signals, and an end in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from specport.errors import InvalidInput
from specport.serve.protocol import TimedProtocol
from specport.serve.service import Service
from specport.serve.settings import Limits

KEEP_ALIVE_SECONDS = 30
BACKLOG = 1024


def ending_signals() -> list[int]:
    """Return the signals that end a server: not SIGHUP where it is ignored, as under nohup."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    found: list[int] = [getattr(signal, name) for name in names if hasattr(signal, name)]
    hung_up = getattr(signal, "SIGHUP", None)
    return [n for n in found if n != hung_up or signal.getsignal(n) is not signal.SIG_IGN]


def bind(host: str, port: int) -> socket.socket:
    """Return a socket with this address; port 0 = a free one. Raises InvalidInput."""
    if not 0 <= port < 1 << 16:  # some systems take the last 16 bits
        raise InvalidInput(f"cannot use the address {host}:{port}: ports are 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"cannot use the address {host}:{port}: {_reason(error)}") from error
    try:
        if os.name == "posix":  # elsewhere it would allow two servers on one port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise InvalidInput(
            f"cannot use the address {host}:{port}: {_reason(error)}", "choose another with --port"
        ) from error
    return bound


def listen(bound: socket.socket) -> None:
    """Let clients connect. Raises InvalidInput where another program took the port meanwhile."""
    try:
        bound.listen(BACKLOG)
    except OSError as error:
        raise InvalidInput(
            f"another program uses the port: {_reason(error)}", "choose another with --port"
        ) from error


def serving(name: str, device: str, draft: str, mode: str) -> str:
    """Return the line that says what a server serves. mode: as of `Pipeline.mode`."""
    return f"{name} on {device}, draft {draft}, {mode}"


def told(host: str, port: int, *, page: bool) -> str:
    """Return the line that says where a server listens."""
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    where = f", page at {url}/" if page else ""
    return f"listening on {url}/v1{where}; Ctrl-C ends it"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class Server(uvicorn.Server):
    """A uvicorn server that answers 503 while it ends.

    The first signal lets running requests finish, the second cancels them. signal: the first one that came.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.signal: int | None = None
        self._service = service
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals. uvicorn would send them again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in ending_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = sig
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self.signal is not None and self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        await self._service.drain()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.stop()  # ends streams that still run, for which uvicorn waits
        await super().shutdown(sockets)


def make_server(app: FastAPI, service: Service, limits: Limits, access_log: bool = True) -> Server:
    """Return the server of an application."""
    seconds = {"header_seconds": limits.header_seconds, "send_seconds": limits.send_seconds}
    protocol = type("Protocol", (TimedProtocol,), seconds)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=_logging(access_log),
        access_log=access_log,
        proxy_headers=False,  # who asks decides whose turn it is: a header could say anything
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
        limit_concurrency=limits.max_connections,
    )
    return Server(config, service)


def _logging(access_log: bool) -> dict[str, Any]:
    """Return a configuration that writes all to stderr. No prompt and no answer is ever logged."""
    level = "INFO" if access_log else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": most, "propagate": False}
            for name, most in (
                ("uvicorn", "WARNING"),
                ("uvicorn.access", level),
                ("specport.serve", level),
            )
        },
    }
