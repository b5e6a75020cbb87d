"""`specport serve` as a process: signals, refusals at the end, and what is written."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import httpx
import pytest
from support.processes.served import Process, connect, wait_for
from support.toys import toy_pipeline
from support.toys.toy_pipeline import greedy

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
SLOW = {"TOY_STEP_SECONDS": "0.01"}
BODY = {"prompt": "abc", "temperature": 0}


def start(*arguments: str, **env: str) -> Process:
    process = Process(toy_pipeline.PROGRAM, arguments, **env)
    process.wait_until_ready()
    return process


class Asking(threading.Thread):
    """A request that runs beside the test."""

    def __init__(self, url: str, **fields: Any) -> None:
        super().__init__(daemon=True)
        self.url, self.fields = url, fields
        self.reply: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self.reply = httpx.post(f"{self.url}/v1/completions", json={**BODY, **self.fields}, timeout=60)


def running(url: str) -> bool:
    return 'num_requests_running{engine="0",model_name="toy"} 1.0' in httpx.get(f"{url}/metrics").text


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (getattr(signal, "SIGHUP", 1), 0), (signal.SIGINT, 130)]
)
def test_a_signal_lets_running_requests_finish_and_refuses_new_ones(number: int, code: int) -> None:
    with start(TOY_STEP_SECONDS="0.025") as server:  # they run on while a busy machine asks what is refused
        asking = [Asking(server.url, max_tokens=200, stream=stream) for stream in (False, True)]
        wait_for(
            lambda: 'running{engine="0",model_name="toy"} 2.0' in httpx.get(f"{server.url}/metrics").text
        )
        server.process.send_signal(number)
        wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        assert httpx.get(f"{server.url}/health").json()["status"] == "shutting down"
        refused = httpx.post(f"{server.url}/v1/completions", json=BODY)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        for each in asking:
            each.join(60)
        whole, stream = (each.reply for each in asking)
        assert whole is not None and whole.json()["choices"][0]["text"] == greedy("abc", 200)
        assert stream is not None and stream.text.endswith("data: [DONE]\n\n") and "error" not in stream.text
        found, err = server.end()
        assert found == code and "Traceback" not in err


def test_a_second_signal_ends_what_runs() -> None:
    with start(**SLOW) as server:
        asking = Asking(server.url, max_tokens=4000)
        wait_for(lambda: running(server.url))
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code, err = server.end()
        asking.join(60)
        assert code == 0 and "Traceback" not in err and time.monotonic() - began < 10
        assert asking.reply is not None and asking.reply.status_code == 503


def test_running_requests_have_a_time_limit_at_the_end() -> None:
    with start("--shutdown-seconds", "0.3", **SLOW) as server:
        asking = Asking(server.url, max_tokens=4000)
        wait_for(lambda: running(server.url))
        server.process.send_signal(signal.SIGTERM)
        code, err = server.end(20)
        asking.join(60)
        assert code == 0 and "Traceback" not in err
        assert asking.reply is not None and asking.reply.status_code == 503


def test_what_is_written_has_no_prompt_and_stdout_is_empty() -> None:
    with start() as server:
        secret = "hdeadbeefh"
        reply = httpx.post(f"{server.url}/v1/completions", json={**BODY, "prompt": secret, "max_tokens": 20})
        httpx.post(f"{server.url}/v1/completions", json={**BODY, "prompt": secret, "n": "x"})
        server.process.send_signal(signal.SIGTERM)
        out, err = server.process.communicate(timeout=30)
        err = "".join(server.lines) + err
        assert out == "" and err.count("POST /v1/completions") == 2
        assert secret not in err and reply.json()["choices"][0]["text"] not in err
        assert "toy on paper, draft ngram, exact" in err and "note: it is a toy" in err


def test_an_idle_connection_does_not_hold_the_end_up() -> None:
    with start() as server, connect(server.url):
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code, _ = server.end(20)
        assert code == 0 and time.monotonic() - began < 5


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded() -> None:
    import subprocess

    with start() as server:
        port = server.url.rpartition(":")[2]
        done = subprocess.run(
            [*toy_pipeline.PROGRAM, "serve", "--port", port],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert f"cannot use the address 127.0.0.1:{port}" in done.stderr and "--port" in done.stderr
