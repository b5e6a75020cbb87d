"""A server for the tests: in this process without a socket, or as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

import specport
from specport.conformance.models import tiny
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.pipeline import Pipeline
from specport.serve import server
from specport.serve.app import make_app
from specport.serve.metrics import ServerMetrics
from specport.serve.service import Service
from specport.serve.settings import Limits
from support.generations import drafted
from support.toys.toy_model import ToyModel
from support.toys.toy_pipeline import ToyTokenizer

NAME = "tiny"
TEMPLATE = (
    "{% for m in messages %}{% if m['content'] == 'refused' %}{{ raise_exception('no such word') }}"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny(folder: Path) -> tuple[Path, Path]:
    """Write the conformance suite's tiny target, here with a chat template, and its draft."""
    target, draft = tiny.write(folder)
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": TEMPLATE}
    path.write_text(json.dumps(config), encoding="utf-8")
    return target, draft


def load_tiny(folder: Path, draft: str | None = None) -> Pipeline:
    """Return a pipeline on the tiny target. draft: None = its own, with policy "fixed": it always drafts."""
    target, own = write_tiny(folder)
    if draft is not None:
        return specport.load(str(target), draft=draft, device="torch-cpu")
    return specport.load(str(target), draft=str(own), device="torch-cpu", policy="fixed", num_draft_tokens=3)


def toy(*, drafts: bool = True, **options: Any) -> Pipeline:
    """Return a pipeline on the toy model. options: of `ToyModel`."""
    model = ToyModel(**{"max_context": 4096, **options})
    return Pipeline(drafted(model, NgramDrafter() if drafts else None), ToyTokenizer(), model_name="toy")


class Served:
    """A service with its application, and a client of it."""

    def __init__(self, service: Service, client: httpx.AsyncClient) -> None:
        self.service, self.client = service, client

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **options)

    async def chat(self, content: str, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return await self.post("/v1/chat/completions", {"messages": messages, "temperature": 0, **fields})

    async def complete(self, prompt: Any, **fields: Any) -> httpx.Response:
        return await self.post("/v1/completions", {"prompt": prompt, "temperature": 0, **fields})

    async def idle(self) -> None:
        """Wait until the engine has no sequence."""
        engine = self.service.pipeline.engine
        for _ in range(500):
            if not engine.num_unfinished and not self.service._admission.num_running:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("sequences are left")


@asynccontextmanager
async def served(
    pipeline: Pipeline,
    limits: Limits | None = None,
    *,
    ready: bool = True,
    prefix: str = "specport",
    **options: Any,
) -> AsyncIterator[Served]:
    """Start a service in this process. options: of `make_app`."""
    service = Service(pipeline, limits or Limits(), ServerMetrics(NAME, prefix))
    app = make_app(service, NAME, **options)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
        await service.start()
        try:
            if ready:
                await service.ready()
            yield Served(service, client)
        finally:
            await service.stop()


@contextmanager
def listening(
    pipeline: Pipeline, limits: Limits | None = None, **options: Any
) -> Iterator[tuple[str, Service]]:
    """Start a server with a socket in a thread of this process; yield its address and its service."""
    limits = limits or Limits()
    service = Service(pipeline, limits, ServerMetrics(NAME))
    bound = server.bind("127.0.0.1", 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # a reader that stops is noticed soon
    server.listen(bound)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    made = server.make_server(make_app(service, NAME, **options), service, limits, access_log=False)
    thread = threading.Thread(target=asyncio.run, args=(made.serve([bound]),), daemon=True)
    thread.start()
    try:
        wait_for(lambda: service.state == "ready")
        yield url, service
    finally:
        made.signal = made.signal or 15
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"


def wait_for(found: Any, seconds: float = 30.0) -> None:
    """Wait until a function returns something true."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def connect(url: str) -> socket.socket:
    """Return a bare connection to a server."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def request(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    """Return the bytes of a POST request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def run(work: Coroutine[Any, Any, Any], seconds: float = 120.0) -> Any:
    """Run a test's coroutine."""
    return asyncio.run(asyncio.wait_for(work, seconds))


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the events of a stream; the last one must be [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    data = [part[6:] for part in response.text.split("\n\n") if part.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(each) for each in data]


class Process:
    """`specport serve` in a process of its own, on a free port."""

    def __init__(self, command: Sequence[str], arguments: Sequence[str], **env: str) -> None:
        self.process = subprocess.Popen(
            [*command, "serve", "--port", "0", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            encoding="utf-8", env={**os.environ, **env},
        )  # fmt: skip
        assert self.process.stderr is not None
        self.lines: list[str] = []
        self.url = ""
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening on (http://\S+)/v1", line):
                self.url = found[1]
                break
        assert self.url, "".join(self.lines)

    def wait_until_ready(self) -> None:
        wait_for(lambda: httpx.get(f"{self.url}/health").status_code == 200, 120)

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was written to stderr."""
        _, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, "".join(self.lines) + err

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def command() -> list[str]:
    """Return the `specport` command of this installation."""
    return [sys.executable, "-m", "specport"]
