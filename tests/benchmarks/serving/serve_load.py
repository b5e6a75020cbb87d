"""Load on a server: clients with prompts and answers of mixed lengths, streamed and not; some go away.

    python tests/benchmarks/serving/serve_load.py --clients 8 --seconds 30 -- --model MODEL --draft DRAFT
    python tests/benchmarks/serving/serve_load.py --url http://127.0.0.1:8000 --pid 4711

Without --url it starts `specport serve` with the options behind --. Every request is greedy and is asked
alone first, whole and streamed (which show a call that breaks off differently); then the texts under load
must be the same. With --structured, that share of the requests asks for a JSON schema or a call of a tool.
Prints errors, TTFT, TPOT, throughput, memory, and writes them as JSON with --out. Exit code 1 = an error,
another text, or something left behind. Other servers with OpenAI's API are measured by --url: llama-server,
or `genai_server.py`; theirs may change texts in batches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

TOPICS = ("a river", "the moon", "a clock", "bread", "the number seven", "a bridge", "rain", "a library")
TASKS = (
    "Write one sentence about {}.",
    "Write the numbers from 1 to 30, one a line. Then name {}.",
    "Explain {} to a child in three short paragraphs.",
    "Repeat this five times: the quick brown fox jumps over {} and the lazy dog. {text}",
)
FILLER = "The quick brown fox jumps over the lazy dog near the old mill by the stream. " * 12
LENGTHS = (8, 32, 96)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
# What a kind of request adds to its body.
KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "someone", "schema": SCHEMA}}
    },
    "tool": {
        "tools": [{"type": "function", "function": {"name": "save_person", "parameters": SCHEMA}}],
        "tool_choice": "required",
    },
}


@dataclass(frozen=True)
class Ask:
    """One request. kind: of `KINDS`."""

    prompt: str
    max_tokens: int
    kind: str = "text"

    def body(self, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": self.prompt}], "temperature": 0,
            "max_tokens": self.max_tokens, "stream": stream, **KINDS[self.kind],
        }  # fmt: skip
        return body | ({"stream_options": {"include_usage": True}} if stream else {})


Wanted = dict[tuple[Ask, bool], str]  # (request, whether streamed) -> its text


@dataclass
class Tally:
    """What was measured. Seconds; memory in MiB."""

    done: int = 0
    cancelled: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def asks(seed: int, count: int, structured: float = 0.0) -> list[Ask]:
    rng = random.Random(seed)
    texts = [
        Ask(rng.choice(TASKS).format(rng.choice(TOPICS), text=FILLER), rng.choice(LENGTHS))
        for _ in range(count)
    ]
    other = round(count * structured)
    kinds = [kind for kind in KINDS if kind != "text"]
    return texts[other:] + [
        Ask(f"Someone on {rng.choice(TOPICS)}: invent a person {i}.", 64, kinds[i % len(kinds)])
        for i in range(other)
    ]


def said(part: dict[str, Any]) -> str:
    """Return what a message or a piece of one says: its text, and what it calls."""
    calls = (call["function"] for call in part.get("tool_calls") or ())
    called = "".join((call.get("name") or "") + (call.get("arguments") or "") for call in calls)
    return (part.get("content") or "") + called


async def whole(client: httpx.AsyncClient, ask: Ask) -> tuple[str, int]:
    """Return the text and its number of tokens."""
    reply = await client.post("/v1/chat/completions", json=ask.body(stream=False))
    reply.raise_for_status()
    found = reply.json()
    return said(found["choices"][0]["message"]), found["usage"]["completion_tokens"]


async def chunks(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in reply.aiter_lines():
        if line.startswith("data: {"):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            yield chunk


async def streamed(client: httpx.AsyncClient, ask: Ask, tally: Tally, leave_after: int | None) -> str | None:
    """Return the text of a stream, or None where the client goes away after as many pieces."""
    began, first, last, text, tokens, pieces = time.perf_counter(), 0.0, 0.0, "", 0, 0
    async with client.stream("POST", "/v1/chat/completions", json=ask.body(stream=True)) as reply:
        reply.raise_for_status()
        async for chunk in chunks(reply):
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            new = "".join(said(choice["delta"]) for choice in chunk["choices"])
            if new:
                last = time.perf_counter()
                first = first or last
                text += new
                pieces += 1
            if leave_after is not None and pieces >= leave_after:
                return None
    if first:
        tally.ttft.append(first - began)
    if tokens > 1 and first:
        tally.tpot.append((last - first) / (tokens - 1))
    tally.tokens += tokens
    return text


async def one_client(
    number: int, client: httpx.AsyncClient, wanted: Wanted, tally: Tally, end: float, cancel: float
) -> None:
    rng = random.Random(1000 + number)
    while time.perf_counter() < end:
        ask, stream = rng.choice([*wanted])
        try:
            if rng.random() < cancel:
                stream = True  # it may end before its client goes away
                text = await streamed(client, ask, tally, rng.randint(1, 4))
            elif stream:
                text = await streamed(client, ask, tally, None)
            else:
                text, tokens = await whole(client, ask)
                tally.tokens += tokens
        except (httpx.HTTPError, RuntimeError, ValueError) as error:
            tally.errors.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.2)
            continue
        if text is None:
            tally.cancelled += 1
            continue
        tally.done += 1
        if text != (alone := wanted[ask, stream]):
            tally.different.append(f"{ask.prompt[:60]!r}: {text[:200]!r} instead of {alone[:200]!r}")


async def watch(pid: int | None, tally: Tally) -> None:
    while pid is not None:
        tally.memory.append(psutil.Process(pid).memory_info().rss / 2**20)
        await asyncio.sleep(0.5)


async def left_behind(client: httpx.AsyncClient) -> int:
    """Return how many sequences the server still holds, some time after the last request."""
    count = -1
    for _ in range(50):
        text = (await client.get("/metrics")).text
        count = int(
            sum(float(n) for n in re.findall(r":num_requests_(?:running|waiting)\{.*?\} (\S+)", text))
        )
        if not count:
            break
        await asyncio.sleep(0.2)
    return count


async def measure(args: argparse.Namespace, url: str, pid: int | None) -> dict[str, Any]:
    tally = Tally()
    # A connection for each request: servers differ in how long they keep one.
    limits = httpx.Limits(max_connections=args.clients + 1, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        for _ in range(1200):
            with suppress(httpx.ConnectError):  # it is not up yet
                if (await client.get("/health")).status_code == 200:
                    break
            await asyncio.sleep(0.1)
        wanted: Wanted = {}
        for ask in asks(args.seed, args.kinds, args.structured):
            wanted[ask, False] = (await whole(client, ask))[0]
            wanted[ask, True] = await streamed(client, ask, Tally(), None) or ""
        watching = asyncio.ensure_future(watch(pid, tally))
        began = time.perf_counter()
        end = began + args.seconds
        await asyncio.gather(
            *(one_client(i, client, wanted, tally, end, args.cancel) for i in range(args.clients))
        )
        seconds = time.perf_counter() - began
        watching.cancel()
        left = await left_behind(client)
    return {
        "clients": args.clients, "seconds": round(seconds, 1), "done": tally.done,
        "cancelled": tally.cancelled,
        "errors": tally.errors, "different": tally.different, "left_behind": left,
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "requests_per_second": round(tally.done / seconds, 2),
        "ttft_ms": percentiles(tally.ttft), "tpot_ms": percentiles(tally.tpot),
        "memory_mib": {"first": round(tally.memory[0]), "most": round(max(tally.memory)),
                       "last": round(tally.memory[-1])} if tally.memory else None,
    }  # fmt: skip


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {f"p{p}": round(float(np.percentile(seconds, p)) * 1e3, 1) for p in (50, 99)}


@contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """Yield the address and the process of the server."""
    if args.url:
        yield args.url.rstrip("/"), args.pid
        return
    command = [sys.executable, "-m", "specport", "serve", "--port", "0", "--quiet", *args.serve]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", file=sys.stderr)
            if found := re.search(r"listening on (http://\S+)/v1", line):
                break
        else:
            sys.exit("the server did not start")
        yield found[1], process.pid
    finally:
        process.terminate()
        _, rest = process.communicate(timeout=90)
        print(rest, end="", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--pid", type=int, help="its process, for the memory")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--cancel", type=float, default=0.15, help="share of requests whose client goes away")
    parser.add_argument("--kinds", type=int, default=16, help="different requests")
    parser.add_argument("--structured", type=float, default=0.0, help="share of them with a schema or a tool")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the report as JSON, too")
    parser.add_argument("serve", nargs="*", metavar="-- OPTIONS", help="options of specport serve")
    args = parser.parse_args()
    with server(args) as (url, pid):
        report = asyncio.run(measure(args, url, pid))
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(bool(report["errors"] or report["different"] or report["left_behind"]))


if __name__ == "__main__":
    sys.exit(main())
