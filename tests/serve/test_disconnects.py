"""Clients that go away, do not read, or do not finish their request: what they hold is given back."""

from __future__ import annotations

import re
import socket
import threading
import time

import httpx
from support.processes.served import connect, listening, request, toy, wait_for
from support.toys.toy_pipeline import greedy

from specport.serve.service import Service
from specport.serve.settings import Limits

LONG = {"prompt": "abc", "max_tokens": 3500, "temperature": 0}


def unfinished(service: Service) -> int:
    return service.pipeline.engine.num_unfinished


def test_a_client_that_goes_away_frees_its_sequence_within_a_round() -> None:
    pipeline = toy(step_seconds=0.03)
    with listening(pipeline) as (url, service):
        for stream in (True, False):
            with connect(url) as client:
                client.sendall(request({**LONG, "stream": stream}))
                if stream:
                    assert b"200 OK" in client.recv(100)
                wait_for(lambda: pipeline.engine.model.num_open == 1)
                (open_one,) = [handle for handle in pipeline.engine.model.handles if not handle.closed]
            steps = len(pipeline.engine.model.steps)
            wait_for(lambda handle=open_one: handle.closed)
            # One that ran when the connection was closed, the one it takes to notice that, and one to spare.
            assert len(pipeline.engine.model.steps) - steps <= 3
            wait_for(lambda: service._admission.num_running == 0)
        assert unfinished(service) == 0


def test_the_others_go_on() -> None:
    with listening(toy(step_seconds=0.005)) as (url, service):
        texts: list[str] = []

        def ask() -> None:
            reply = httpx.post(f"{url}/v1/completions", json={**LONG, "max_tokens": 150}, timeout=60)
            texts.append(reply.json()["choices"][0]["text"])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            with connect(url) as client:
                client.sendall(request({**LONG, "stream": True}))
                client.recv(100)
        for thread in threads:
            thread.join(60)
        assert texts == [greedy("abc", 150)] * 3
        wait_for(lambda: unfinished(service) == 0)


def test_who_waits_and_goes_away_gives_up_the_place() -> None:
    with listening(toy(step_seconds=0.02), Limits(max_running=1, max_queue=1)) as (url, service):
        with connect(url) as running:
            running.sendall(request({**LONG, "stream": True}))
            running.recv(100)
            with connect(url) as waiting:
                waiting.sendall(request(LONG))
                wait_for(lambda: service._admission.num_waiting == 1)
            wait_for(lambda: service._admission.num_waiting == 0)
            assert unfinished(service) == 1
        wait_for(lambda: service._admission.num_running == 0)


def test_a_client_that_does_not_read_its_stream_is_given_up() -> None:
    limits = Limits(send_seconds=0.3)
    with listening(toy(max_context=1 << 20), limits) as (url, service):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = url.removeprefix("http://").split(":")
            client.connect((host, int(port)))
            client.sendall(request({**LONG, "max_tokens": 1 << 18, "stream": True}))
            wait_for(lambda: unfinished(service) == 1)
            wait_for(lambda: unfinished(service) == 0, 60)
        assert httpx.post(f"{url}/v1/completions", json={**LONG, "max_tokens": 5}).status_code == 200


def closed_after(url: str, data: bytes) -> tuple[float, bytes]:
    """Return after how many seconds the server closes a connection on which only this was sent."""
    began = time.perf_counter()
    with connect(url) as client:
        client.sendall(data)
        reply = b""
        while part := client.recv(4096):
            reply += part
    return time.perf_counter() - began, reply


def whole_reply(client: socket.socket) -> bytes:
    """Read one reply, whose head and body may come apart."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if end and length and len(body) >= int(length[1]):
            return data
        data += client.recv(4096)


def test_requests_that_do_not_arrive_do_not_hold_their_connection() -> None:
    limits = Limits(header_seconds=0.5, body_seconds=0.5)
    whole = request({**LONG, "max_tokens": 3})
    with listening(toy(), limits) as (url, _):
        for head in (b"", b"POST /v1/compl", whole[: whole.index(b"\r\n\r\n") + 2]):
            seconds, reply = closed_after(url, head)
            assert 0.3 < seconds < 5 and reply == b""
        seconds, reply = closed_after(url, whole[:-3])
        assert 0.3 < seconds < 5 and b" 408 " in reply and b"did not arrive" in reply
        with connect(url) as client:  # a connection that is used again
            for _ in range(2):
                client.sendall(whole)
                assert b"200 OK" in whole_reply(client)
                time.sleep(0.7)
            client.sendall(b"GET ")
            assert client.recv(4096) == b""


def test_a_body_that_is_announced_too_large_is_not_read() -> None:
    with listening(toy(), Limits(max_body=1000)) as (url, _):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        seconds, reply = closed_after(url, head + b"Content-Length: 100000000\r\n\r\n" + b" " * 100)
        assert b" 413 " in reply and seconds < 5
