"""A server under random requests for an hour: memory, threads and handles stay flat, answers stay the same.

    python tests/benchmarks/trust/soak.py --seconds 3600 --out soak.json -- --draft suffix --cache-memory 64MB

It starts `specport serve` with the options behind --. Clients ask for texts, chats and streams of random
lengths; a third of them goes away in the middle; others send what is no request. Every ten seconds memory,
threads and open handles are read. Exit code 1 = an error of the server, another text for the same greedy
request, or growth: the last quarter's median memory is more than a twentieth (and 32 MB) above the second
quarter's, or handles or threads grew. The first quarter is for warming up. The cache of prompts keeps new
texts up to its bound, so one is given that is soon reached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

WORDS = "the river runs past an old mill and a clock tells what rain and bread and numbers mean".split()  # noqa: SIM905
EVERY_S = 10.0
BAD: tuple[tuple[str, bytes], ...] = (
    ("/v1/completions", b"{"),
    ("/v1/completions", b"[" * 5000),
    ("/v1/completions", b'{"prompt": "x", "max_tokens": -1}'),
    ("/v1/chat/completions", b'{"messages": 3}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "\xff"}]}'),
    ("/v1/nothing", b"{}"),
)  # fmt: skip


class Soak:
    """Ask a server, and remember its answers to greedy requests."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.choose = url, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.texts: dict[str, str] = {}

    async def clients(self, count: int, seconds: float) -> None:
        """Run clients side by side."""
        end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=4 * count)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as client:
            await asyncio.gather(*(self._client(client, end) for _ in range(count)))

    async def _client(self, client: httpx.AsyncClient, end: float) -> None:
        while time.monotonic() < end:
            kind = self.choose.choices(
                ("whole", "chat", "stream", "aborted", "bad", "sampled"), (3, 2, 2, 4, 1, 2)
            )[0]
            try:
                await getattr(self, f"_{kind}")(client)
                self.counts[kind] += 1
            except (httpx.HTTPError, KeyError, ValueError) as error:
                self.faults.append(f"{kind}: {error!r}")

    def _body(self, **more: Any) -> dict[str, Any]:
        choose = random.Random(self.choose.randrange(40))  # few different ones, so that they come again
        prompt = " ".join(choose.choices(WORDS, k=choose.choice((3, 20, 120))))
        return {"prompt": prompt, "max_tokens": choose.choice((1, 8, 40)), "temperature": 0, **more}

    async def _whole(self, client: httpx.AsyncClient) -> None:
        body = self._body()
        text = self._checked(await client.post("/v1/completions", json=body))["choices"][0]["text"]
        key = json.dumps(body, sort_keys=True)
        if self.texts.setdefault(key, text) != text:
            self.faults.append(f"another text for {key[:80]}")

    async def _sampled(self, client: httpx.AsyncClient) -> None:
        body = self._body(temperature=1.0, top_p=0.9, n=self.choose.choice((1, 3)))
        self._checked(await client.post("/v1/completions", json=body))

    async def _chat(self, client: httpx.AsyncClient) -> None:
        body = self._body()
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        self._checked(await client.post("/v1/chat/completions", json=body))

    async def _stream(self, client: httpx.AsyncClient, *, most: int = 1 << 30) -> None:
        async with client.stream("POST", "/v1/completions", json=self._body(stream=True)) as answer:
            count = 0
            async for line in answer.aiter_lines():
                count += line.startswith("data: ")
                if count >= most:
                    return  # goes away in the middle

    async def _aborted(self, client: httpx.AsyncClient) -> None:
        if self.choose.random() < 0.5:
            await self._stream(client, most=self.choose.choice((1, 3)))
            return
        asking = client.post("/v1/completions", json=self._body(max_tokens=200))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asking, self.choose.uniform(0.001, 0.3))

    async def _bad(self, client: httpx.AsyncClient) -> None:
        path, content = self.choose.choice(BAD)
        status = (await client.post(path, content=content)).status_code
        if not 400 <= status < 500:
            self.faults.append(f"status {status} for {content[:40]!r}")

    def _checked(self, answer: httpx.Response) -> Any:
        if answer.status_code == 503:  # it is full, and says so
            self.counts["busy"] += 1
            return {"choices": [{"text": None}]}
        if answer.status_code != 200:
            raise ValueError(f"status {answer.status_code}: {answer.text[:200]}")
        return answer.json()


def sample(process: psutil.Process) -> dict[str, float]:
    """Return memory in MB, threads, and open handles."""
    handles = process.num_handles() if sys.platform == "win32" else process.num_fds()
    memory = process.memory_info().rss / 2**20
    return {"mb": memory, "threads": process.num_threads(), "handles": handles}


def growth(samples: list[dict[str, float]]) -> list[str]:
    """Return what grew from the second quarter to the last."""
    quarter = len(samples) // 4
    if not quarter:
        return ["there are too few samples"]
    found = []
    for name, share, least in (("mb", 0.05, 32.0), ("threads", 0.0, 2.0), ("handles", 0.0, 8.0)):
        before, after = (
            statistics.median(each[name] for each in part)
            for part in (samples[quarter : 2 * quarter], samples[-quarter:])
        )
        if after - before > max(least, share * before):
            found.append(f"{name} grew from {before:.0f} to {after:.0f}")
    return found


async def watched(soak: Soak, process: psutil.Process, count: int, seconds: float) -> list[dict[str, float]]:
    """Run the clients, and take samples meanwhile."""
    running = asyncio.create_task(soak.clients(count, seconds))
    samples = [sample(process)]
    while not running.done():
        await asyncio.wait([running], timeout=min(EVERY_S, seconds / 20))
        samples.append(sample(process))
    await running
    return samples


def main() -> None:
    """Run it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("options", nargs="*", help="of specport serve, behind --")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    command = [sys.executable, "-m", "specport", "serve", "--port", "0", *args.options]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=null, encoding="utf-8") as server:
        lines = server.stderr
        assert lines is not None
        url = next(found[1] for line in lines if (found := re.search(r"on (http://\S+)/v1", line)))
        threading.Thread(target=lines.read).start()  # else a full pipe stops it
        while httpx.get(f"{url}/health").status_code != 200:
            time.sleep(0.5)
        soak = Soak(url, args.seed)
        try:
            samples = asyncio.run(watched(soak, psutil.Process(server.pid), args.clients, args.seconds))
        finally:
            server.terminate()
            server.wait(60)
    soak.faults += growth(samples)
    report = {
        "seconds": args.seconds, "clients": args.clients, "requests": dict(soak.counts),
        "exit": server.returncode,
        "first": samples[0], "last": samples[-1], "most": {k: max(s[k] for s in samples) for k in samples[0]},
        "faults": soak.faults[:20], "num_faults": len(soak.faults), "samples": samples,
    }  # fmt: skip
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(json.dumps({k: v for k, v in report.items() if k != "samples"}, indent=1))
    sys.exit(bool(soak.faults))


if __name__ == "__main__":
    main()
