"""Calls of an application without a server: what a replica does for the front."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest
from support.processes.served import Served, run, served, toy
from support.toys.toy_pipeline import greedy

from specport.serve.ray.calls import Call, Head, answered

JSON = [(b"content-type", b"application/json")]


def call(served: Served, **fields: Any) -> Any:
    body = json.dumps({"prompt": "abc", "temperature": 0, "max_tokens": 40, **fields}).encode()
    app = served.client._transport.app  # type: ignore[attr-defined]
    return answered(app, Call("POST", "/v1/completions", headers=JSON, body=body, client="somebody"))


def test_a_reply_comes_with_its_head_first_and_in_few_pieces() -> None:
    async def work() -> None:
        async with served(toy(step_seconds=0.005)) as server:
            head, body = [part async for part in call(server)]
            assert isinstance(head, Head) and head.status == 200
            assert json.loads(body)["choices"][0]["text"] == greedy("abc", 40)
            head, body = [part async for part in call(server, n="x")]
            assert head.status == 400 and json.loads(body)["error"]["param"] == "n"
            head, *parts = [part async for part in call(server, stream=True)]
            assert len(parts) > 1 and b"".join(parts).endswith(b"data: [DONE]\n\n")

    run(work())


def test_an_application_that_fails_has_an_end_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a bug")

    async def work() -> None:
        assert [part async for part in answered(app, Call("GET", "/"))] == []

    run(work())
    (record,) = caplog.records
    assert record.getMessage() == "GET / failed" and "a bug" in str(record.exc_info)


def test_whoever_closes_it_frees_the_sequence() -> None:
    async def work() -> None:
        async with served(toy(step_seconds=0.01)) as server:
            async with aclosing(call(server, stream=True, max_tokens=4000)) as parts:
                async for part in parts:
                    if isinstance(part, bytes):
                        break
            await server.idle()
            task = asyncio.ensure_future(anext(call(server, max_tokens=4000)))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.idle()

    run(work())


def test_the_page_and_what_is_not_there() -> None:
    async def work() -> None:
        async with served(toy()) as server:
            app = server.client._transport.app  # type: ignore[attr-defined]
            head, body = [part async for part in answered(app, Call("GET", "/", client="somebody"))]
            assert head.status == 200 and body.startswith(b"<!doctype html>")
            (head, *_) = [part async for part in answered(app, Call("HEAD", "/health", client="somebody"))]
            assert head.status == 200
            missing = Call("GET", "/nothing", query=b"\xff", client="somebody")  # a query that is no text
            head, body = [part async for part in answered(app, missing)]
            assert head.status == 404 and json.loads(body)["error"]["type"] == "not_found_error"

    run(work())
