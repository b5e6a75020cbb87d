"""The application: routes of OpenAI's API over a service."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from specport.errors import InvalidInput
from specport.serve import metrics
from specport.serve.answer import Answer, Choice, Failed, TimedOut
from specport.serve.guard import CLIENT, Guard
from specport.serve.openai.audio import AudioRoutes
from specport.serve.openai.body import BodyReader, parse
from specport.serve.openai.errors import (
    ApiError,
    JsonResponse,
    bad_request,
    busy,
    from_input,
    response,
    too_late,
    unavailable,
)
from specport.serve.openai.generation import Asked, RequestReader
from specport.serve.openai.replies import Replies, finish_reason, speculation_of
from specport.serve.openai.streaming import BEAT, DONE, GONE, ClientGone, EventStream, event, unless_gone
from specport.serve.playground import add_playground, paths
from specport.serve.service import Busy, NotReady, Service
from specport.serve.settings import Sampling
from specport.serve.speech import SpeechService

_log = logging.getLogger(__name__)
Reader = Callable[[dict[str, Any]], Asked]


def make_app(
    service: Service,
    name: str,
    *,
    sampling: Sampling = Sampling(),  # noqa: B008
    keys: Sequence[str] = (),
    hosts: Collection[str] | None = None,
    page: bool = True,
    speech: SpeechService | None = None,
) -> FastAPI:
    """Return the application. Its lifespan starts and stops the service.

    name: of the model, as clients ask for it. keys, hosts: see `Guard`. page: serve the playground at "/".
    speech: adds the routes of audio.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()
        if speech is not None:
            await speech.stop()

    app = FastAPI(title="specport", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    api = _Api(service, name, sampling, speech)
    get, post = ["GET"], ["POST"]
    app.add_api_route("/health", api.health, methods=["GET", "HEAD"])  # load balancers ask with either
    app.add_api_route("/metrics", api.metrics, methods=get)
    app.add_api_route("/v1/models", api.models, methods=get)
    app.add_api_route("/v1/models/{asked:path}", api.model, methods=get)
    app.add_api_route("/v1/chat/completions", api.chat, methods=post)
    app.add_api_route("/v1/completions", api.completions, methods=post)
    app.add_api_route("/v1/embeddings", api.embeddings, methods=post)
    if speech is not None:
        AudioRoutes(service, speech).add_to(app)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    if page:
        add_playground(app)
    app.add_middleware(Guard, keys=keys, hosts=hosts, open_paths=open_paths(page=page))
    return app


def open_paths(*, page: bool) -> tuple[str, ...]:
    """Return the paths for which no key is needed."""
    return ("/health", *(paths() if page else ()))  # load balancers have no key


class _Api:
    """The routes."""

    def __init__(self, service: Service, name: str, sampling: Sampling, speech: SpeechService | None) -> None:
        limits = service.limits
        self._service, self._name, self._speech = service, name, speech
        self._reader = RequestReader(service.pipeline, name, limits, sampling)
        self._bodies = BodyReader(limits.max_body, limits.max_bodies, limits.body_seconds)
        self._created = int(time.time())

    async def health(self) -> Response:
        """Say whether requests are taken: 200, or 503 while the server warms up or shuts down."""
        state = self._service.state
        return JsonResponse({"status": state, "model": self._name}, 200 if state == "ready" else 503)

    async def metrics(self) -> Response:
        return Response(self._service.metrics.exposition(), media_type=metrics.CONTENT_TYPE)

    async def models(self) -> Response:
        return JsonResponse({"object": "list", "data": self._cards()})

    async def model(self, asked: str) -> Response:
        found = next((card for card in self._cards() if card["id"] == asked), None)
        if found is None:
            raise self._reader.unknown_model(asked)
        return JsonResponse(found)

    def _cards(self) -> list[dict[str, Any]]:
        common = {"object": "model", "created": self._created, "owned_by": "specport"}
        pipeline = self._service.pipeline
        found = {
            "id": self._name, **common, "max_model_len": pipeline.engine.model.max_context,
            "specport": {
                "device": pipeline.device_name, "draft": pipeline.draft_name, "exact": pipeline.exact,
                "chat_template": pipeline.tokenizer.has_chat_template,
            },
        }  # fmt: skip
        return [found] if self._speech is None else [found, {"id": self._speech.name, **common}]

    async def embeddings(self) -> Response:
        raise bad_request(
            "this server generates text and has no embeddings; use /v1/chat/completions or /v1/completions",
            code="unsupported_endpoint",
        )

    async def chat(self, request: Request) -> Response:
        return await self._answered(request, self._reader.chat)

    async def completions(self, request: Request) -> Response:
        return await self._answered(request, self._reader.completion)

    async def _answered(self, request: Request, read: Reader) -> Response:
        try:
            return await self._answer(request, read)
        except (ClientDisconnect, ClientGone):
            return Response(status_code=GONE)
        except NotReady as error:
            raise unavailable(str(error)) from None
        except Busy as error:
            raise busy(error.seconds) from None

    async def _answer(self, request: Request, read: Reader) -> Response:
        service = self._service
        data = await self._bodies.read(request)

        def prepare() -> tuple[Asked, list[Choice]]:
            asked = read(parse(data, service.limits.max_depth))
            try:
                return asked, service.choices(asked.requests, asked.max_draft_tokens)
            except InvalidInput as error:  # a model may be unable to follow some fields
                raise from_input(error) from error

        asked, choices = await service.prepared(prepare)
        answer = service.answer(request.scope[CLIENT], choices)
        pipeline = service.pipeline
        drafts = asked.max_draft_tokens != 0 and pipeline.engine.policy is not None
        replies = Replies(self._name, pipeline.tokenizer, chat=asked.chat, n=asked.n, speculative=drafts)
        if asked.stream:
            return EventStream(_events(answer, replies, asked), answer.close)
        try:
            await unless_gone(request.receive, _finish(answer))
        except (TimedOut, Failed) as error:
            raise _ended_early(error) from error
        finally:
            answer.close()
        return JsonResponse(replies.whole(answer.results))


async def _finish(answer: Answer) -> None:
    async for _ in answer.events():
        pass


async def _events(answer: Answer, replies: Replies, asked: Asked) -> AsyncIterator[bytes]:
    """Yield the events of a stream. An error in its middle is an event, too, as with OpenAI."""

    def usage() -> Mapping[str, Any]:
        if not asked.include_usage:
            return {}
        metrics = [choice.generation.metrics for choice in answer.choices]
        return {"usage": replies.spent(metrics) if asked.continuous_usage else None}

    try:
        if asked.chat:
            for choice in answer.choices:
                yield event({**replies.role(choice.index), **usage()})
        async for new in answer.events():
            if new is None:
                yield BEAT
                continue
            told = speculation_of(new.spans, new.steps) if asked.include_speculation else None
            for chunk in replies.chunks(new.choice.index, new.parts, new.logprobs, told):
                yield event({**chunk, **usage()})
            if new.last:
                reason = finish_reason(new.choice.generation.finish_reason, new.choice.num_calls)
                yield event({**replies.last(new.choice.index, reason), **usage()})
        if asked.include_usage:
            yield event(replies.usage(answer.results))
    except (TimedOut, Failed) as error:
        yield event(_ended_early(error).body())
    yield DONE


def _ended_early(error: TimedOut | Failed) -> ApiError:
    if isinstance(error, TimedOut):
        return too_late()
    cause = error.__cause__
    if isinstance(cause, InvalidInput):  # a grammar that grew too large while it was followed
        return from_input(cause)
    return ApiError(500 if cause is not None else 503, str(error))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Say in OpenAI's shape that there is no such route or method."""
    assert isinstance(error, HTTPException)
    # Its URL may be none: clients choose its host and its query.
    what = f"{request.method} {request.scope['path']}: {error.detail}"
    return response(ApiError(error.status_code, what, headers=error.headers))


async def _bug(request: Request, error: Exception) -> Response:
    return response(ApiError(500, "internal error; see the server's log"))
