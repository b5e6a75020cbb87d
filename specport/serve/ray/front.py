"""The front: takes requests from clients, checks who asks, and has replicas answer them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from specport.serve.guard import CLIENT, Guard
from specport.serve.metrics import CONTENT_TYPE
from specport.serve.openai.body import BodyReader, parse
from specport.serve.openai.errors import ApiError, busy, response, too_late, unavailable
from specport.serve.openai.streaming import ClientGone, unless_gone
from specport.serve.ray.calls import Call, Head
from specport.serve.ray.metrics import joined
from specport.serve.ray.prefixes import names_of
from specport.serve.ray.relay import Lost, Relay
from specport.serve.settings import Limits

PROMPTED = ("/v1/chat/completions", "/v1/completions")
MOST_HELD = 1 << 30  # bytes of requests that wait or run
PAGE_SECONDS = 10.0  # for the replicas to tell their health and their metrics
_log = logging.getLogger(__name__)
_GONE = (RayActorError, WorkerCrashedError, ObjectLostError)


class Front:
    """The deployment that Ray Serve's proxies hand requests to.

    replicas: the model's. keys, hosts, open_paths: see `Guard`.
    """

    def __init__(
        self,
        replicas: DeploymentHandle[Any],
        limits: Limits,
        keys: Sequence[bytes] = (),
        hosts: Collection[str] | None = None,
        open_paths: Collection[str] = (),
    ) -> None:
        self._replicas, self._limits = replicas, limits
        self._answers = replicas.options(stream=True).answer
        self._guard, self._has_keys = Guard(self._handle, keys, hosts, open_paths), bool(keys)
        self._bodies = BodyReader(limits.max_body, limits.max_bodies, limits.body_seconds)
        self._num_running = self._num_held = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def __serve_build_asgi_app__(self) -> ASGIApp:  # the name is Ray Serve's
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            else:
                await self._guard(scope, receive, send)

        return app

    async def has_keys(self) -> bool:
        """Return whether clients need a key."""
        return self._has_keys

    async def drain(self) -> bool:
        """Take no more requests, and wait for the running ones. Return whether they ended in time."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), self._limits.shutdown_seconds)
        except asyncio.TimeoutError:
            return False
        return True

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._draining:
                raise unavailable("shutting down")
            if scope["path"] == "/metrics" and scope["method"] == "GET":
                await (await self._metrics())(scope, receive, send)
                return
            call = await self._call(Request(scope, receive))
        except ApiError as error:
            await response(error)(scope, receive, send)
            return
        except ClientDisconnect:
            return
        self._num_running += 1
        self._num_held += len(call.body)
        self._idle.clear()
        try:
            await self._answer(call, scope, receive, send)
        finally:
            self._num_running -= 1
            self._num_held -= len(call.body)
            if not self._num_running:
                self._idle.set()

    async def _call(self, request: Request) -> Call:
        """Return what the replica is asked. Raises ApiError where the body is no JSON object."""
        scope, body = request.scope, b""
        names: tuple[bytes, ...] = ()
        if request.method == "POST" and scope["path"] in PROMPTED:
            body = await self._bodies.read(request)
            if self._num_held + len(body) > MOST_HELD:
                raise busy(2)
            names = await asyncio.to_thread(_names, body, self._limits.max_depth)
        headers = [(name, value) for name, value in scope["headers"] if name == b"content-type"]
        return Call(
            scope["method"], scope["path"], scope["query_string"], headers, body, scope[CLIENT], names
        )

    async def _answer(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = self._limits.request_seconds if call.body else PAGE_SECONDS
        relay = Relay(scope, receive, send, lambda: self._parts(call, seconds))
        try:
            await unless_gone(receive, relay.run())
        except ClientGone:
            return
        except BackPressureError:
            await relay.fail(busy(2))
        except DeploymentUnavailableError:
            await relay.fail(ApiError(503, "there is no replica", code="unavailable"))
        except asyncio.TimeoutError:
            await relay.fail(_late(call))
        except Exception:
            _log.exception("a request failed")
            await relay.fail(ApiError(500, "internal error; see the server's log"))

    async def _parts(self, call: Call, seconds: float) -> AsyncGenerator[Head | bytes, None]:
        """Yield the parts of a replica's reply. seconds: for the first one, in the queue."""
        reply = self._answers.remote(call)
        first = asyncio.ensure_future(anext(reply))
        # Nobody else hears of the error that Ray raises where a reply is cancelled.
        first.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            # Not `wait_for`: before Python 3.12 it drops a cancellation that comes together with the part.
            if not (await asyncio.wait({first}, timeout=seconds))[0]:
                raise asyncio.TimeoutError
            yield first.result()
            async for part in reply:
                yield part
        except StopAsyncIteration:
            raise Lost from None
        except _GONE as error:
            raise Lost from error
        finally:
            first.cancel()
            reply.cancel()

    async def _metrics(self) -> Response:
        """Return the metrics of all replicas, each with its own label "engine"."""
        try:
            pages = await self._replicas.broadcast("metrics").results_async(
                timeout_s=PAGE_SECONDS, return_exceptions=True
            )
        except (DeploymentUnavailableError, TimeoutError):
            pages = []
        return Response(joined(page for page in pages if isinstance(page, bytes)), media_type=CONTENT_TYPE)


def _names(body: bytes, max_depth: int) -> tuple[bytes, ...]:
    return names_of(parse(body, max_depth))


def _late(call: Call) -> ApiError:
    if call.path == "/health":
        return ApiError(503, "no replica answers", code="unavailable")
    return too_late()


async def _lifespan(receive: Receive, send: Send) -> None:
    for end in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{end}.complete"})
