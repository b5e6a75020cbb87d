"""A reply on its way to the client, with replicas that are lost at any place of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from specport.serve.openai.streaming import BEAT, DONE, event
from specport.serve.ray.calls import Head
from specport.serve.ray.relay import TRIES, Lost, Relay

STREAM = Head(200, [(b"content-type", b"text/event-stream; charset=utf-8")])
WHOLE = Head(200, [(b"content-type", b"application/json")])
BUSY = Head(429, [(b"content-type", b"application/json")])


def role(number: int = 0) -> bytes:
    return event(
        {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}], "id": number}
    )


def text(content: str) -> bytes:
    return event({"choices": [{"delta": {"content": content}, "finish_reason": None}]})


class Sent:
    """What the client got."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        assert [m["type"] for m in self.messages] == [
            "http.response.start", *["http.response.body"] * (len(self.messages) - 1)
        ]  # fmt: skip
        assert not self.messages[-1].get("more_body", False)
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.messages[1:])


def relayed(*tries: Sequence[Head | bytes | type[Lost]]) -> Sent:
    """Return what a client gets where each try has these parts."""
    left, sent = [*tries], Sent()

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def open() -> AsyncGenerator[Head | bytes, None]:
        for part in left.pop(0):
            if part is Lost:
                raise Lost
            assert isinstance(part, (Head, bytes))
            yield part

    asyncio.run(Relay({"type": "http"}, receive, sent, open).run())
    assert not left, "not every try was made"
    return sent


def test_a_reply_goes_through_as_it_is() -> None:
    whole = relayed([WHOLE, b'{"a": 1}'])
    assert whole.status == 200 and whole.body == b'{"a": 1}' and whole.messages[0]["headers"] == WHOLE.headers
    stream = relayed([STREAM, role(), text("a") + text("b"), DONE])
    assert stream.status == 200 and stream.body == role() + text("a") + text("b") + DONE
    assert len(stream.messages) == 4  # the events that say nothing wait for the first token


@pytest.mark.parametrize(
    "lost",
    [[Lost], [WHOLE, Lost], [STREAM, Lost], [STREAM, role(1), Lost], [STREAM, role(1) + role(1), Lost]],
)
def test_before_anything_is_told_another_replica_answers(lost: Any) -> None:
    sent = relayed(lost, [STREAM, role(2), text("a"), DONE])
    assert sent.status == 200 and sent.body == role(2) + text("a") + DONE
    assert relayed(lost, lost, [WHOLE, b"{}"]).body == b"{}"


def test_a_sign_of_life_commits_to_no_answer() -> None:
    sent = relayed([STREAM, role(1) + BEAT, Lost], [STREAM, role(2), BEAT, text("a") + DONE])
    assert sent.body == BEAT + BEAT + role(2) + text("a") + DONE and sent.status == 200


def test_an_error_of_the_second_replica_ends_the_stream_that_the_first_began() -> None:
    error = json.dumps({"error": {"message": "too many", "code": "rate_limit_exceeded"}}).encode()
    sent = relayed([STREAM, BEAT, Lost], [BUSY, error])
    assert sent.status == 200 and sent.body == BEAT + b"data: " + error + b"\n\n" + DONE
    assert relayed([STREAM, role(), Lost], [BUSY, error]).status == 429


def test_after_a_token_the_stream_ends_with_an_error() -> None:
    sent = relayed([STREAM, role(), text("a"), Lost])
    kept, last, done = sent.body.removesuffix(b"\n\n").split(b"\n\n")[1:]
    assert sent.status == 200 and kept + b"\n\n" == text("a") and done + b"\n\n" == DONE
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == "replica_lost" and error["type"] == "server_error" and error["message"]


def test_what_is_complete_is_not_lost() -> None:
    assert relayed([WHOLE, b"{}", Lost]).body == b"{}"
    assert relayed([STREAM, text("a") + DONE, Lost]).body == text("a") + DONE


def test_a_request_that_kills_every_replica_is_given_up() -> None:
    sent = relayed(*[[Lost]] * TRIES)
    assert sent.status == 503 and json.loads(sent.body)["error"]["code"] == "replica_lost"
    sent = relayed(*[[WHOLE, Lost]] * TRIES)  # with its head, but never with its body
    assert sent.status == 503 and b"replica_lost" in sent.body
    sent = relayed(*[[STREAM, BEAT, Lost]] * TRIES)
    assert sent.status == 200 and b"replica_lost" in sent.body and sent.body.endswith(DONE)
