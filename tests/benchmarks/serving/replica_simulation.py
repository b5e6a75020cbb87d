"""Simulate replicas behind a router, from measured step times: how to route, and how many are needed.

    python tests/benchmarks/serving/replica_simulation.py \\
        [--times tests/benchmarks/serving/replica_times.json] [--seed 0]

Discrete events: requests arrive, replicas step. A replica's round is the scheduler's: all sequences that
decode, and a bounded part of prompts. Routing by prefix is the code that the server runs, with fronts that
see a part of the requests each, and the reports that they get. All policies know every queue exactly.

The traffic is chats: each has one of the system prompts (few of them are common), some turns, and pauses in
between. Each turn's prompt is the whole chat so far.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from specport.core.scheduler import MAX_RUNNING, PREFILL_BESIDE, PREFILL_CHUNK
from specport.serve.ray.prefixes import PrefixIndex, Recent, ranked

BLOCK = 32  # tokens
FRONT_OF = 16  # replicas for each front, as `Replicas.fronts`
REPORT_SECONDS, REPORTED = 5.0, 16384  # as in `deploy.py`


@dataclass(frozen=True)
class Times:
    """The measured seconds of a step. decoding: (rows, seconds, tokens that each row gains)."""

    prompt_token_s: float
    decoding: tuple[tuple[int, float, float], ...]

    @classmethod
    def read(cls, path: Path) -> Times:
        facts = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple((each["rows"], each["seconds"], each["tokens"]) for each in facts["decoding"])
        return cls(facts["prompt_token_s"], rows)

    def step(self, rows: int, prompt: int) -> tuple[float, float]:
        """Return the seconds of a step, and the tokens that each decoding row gains."""
        sizes, seconds, tokens = zip(*self.decoding, strict=True)
        base = float(np.interp(rows, (0, *sizes), (0.0, *seconds)))
        if rows > sizes[-1]:  # beyond what was measured it grows as between the last two
            base += (rows - sizes[-1]) * (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
        return base + prompt * self.prompt_token_s, float(np.interp(rows, sizes, tokens))


@dataclass
class Chat:
    """A conversation. turns: (tokens of the user's message, tokens of the answer, pause before it)."""

    number: int
    system: int
    system_tokens: int
    turns: list[tuple[int, int, float]]


@dataclass(eq=False)
class Request:
    chat: Chat
    turn: int
    arrival: float
    names: tuple[bytes, ...]  # of its full blocks
    prompt: int
    answer: int
    unread: int = 0
    gained: float = 0.0
    first: float | None = None


def chats(
    rate: float, seconds: float, rng: np.random.Generator, systems: int
) -> Iterator[tuple[float, Chat]]:
    """Yield when each chat begins. rate: chats a second. systems: system prompts, the n-th 1/n as common."""
    share = 1 / np.arange(1, systems + 1)
    lengths = rng.integers(200, 1500, systems)
    now = 0.0
    for number in count():
        now += rng.exponential(1 / rate)
        if now > seconds:
            return
        system = int(rng.choice(systems, p=share / share.sum()))
        turns = [
            (
                max(4, int(rng.lognormal(3.4, 0.8))),
                int(np.clip(rng.lognormal(4.7, 0.7), 8, 600)),
                float(rng.exponential(25.0)),
            )
            for _ in range(rng.geometric(0.25))
        ]
        yield now, Chat(number, system, int(lengths[system]), turns)


def request_of(chat: Chat, turn: int, now: float) -> Request:
    before = sum(user + answer for user, answer, _ in chat.turns[:turn])
    prompt = chat.system_tokens + before + chat.turns[turn][0]
    shared = chat.system_tokens // BLOCK
    names = tuple(
        (b"s%d" % chat.system if i < shared else b"c%d" % chat.number) + b"-%d" % i
        for i in range(prompt // BLOCK)
    )
    return Request(chat, turn, now, names, prompt, chat.turns[turn][1])


@dataclass(eq=False)
class Replica:
    """A replica with its prefix cache of `most` blocks."""

    name: str
    times: Times
    most: int
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    cache: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    recent: Recent = field(default_factory=lambda: Recent(1024))
    stepping: bool = False
    hit = read = 0

    @property
    def queue(self) -> int:
        return len(self.waiting) + len(self.running)

    def _keep(self, names: Sequence[bytes]) -> None:
        for name in reversed(names):
            self.cache[name] = None
            self.cache.move_to_end(name)
        while len(self.cache) > self.most:
            self.cache.popitem(last=False)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < MAX_RUNNING:
            request = self.waiting.popleft()
            held = next((i for i, n in enumerate(request.names) if n not in self.cache), len(request.names))
            request.unread = max(1, request.prompt - held * BLOCK)
            self.hit += request.prompt - request.unread
            self.read += request.prompt
            self.running.append(request)

    def step(self, now: float) -> tuple[float, list[Request]]:
        """Return when the next round ends, and the requests that end with it."""
        self._admit()
        decoding = [request for request in self.running if not request.unread]
        budget = part = PREFILL_BESIDE if decoding else PREFILL_CHUNK
        reading = []
        for request in self.running:
            if request.unread and budget:
                taken = min(budget, request.unread)
                budget -= taken
                reading.append((request, taken))
        seconds, tokens = self.times.step(len(decoding), part - budget)
        end = now + seconds
        for request, taken in reading:
            request.unread -= taken
            if not request.unread:
                request.first, request.gained = end, 1.0
                self._keep(request.names)
        for request in decoding:
            request.gained += tokens
        done = [r for r in self.running if not r.unread and r.gained >= r.answer]
        for request in done:
            self.running.remove(request)
            self._keep(_with_answer(request))
        return end, done


def _with_answer(request: Request) -> tuple[bytes, ...]:
    full = (request.prompt + request.answer) // BLOCK
    more = (b"c%d-%d" % (request.chat.number, i) for i in range(len(request.names), full))
    return (*request.names, *more)


Policy = Callable[[Request, Sequence[Replica], float], Replica]


def round_robin(rng: random.Random) -> Policy:
    turn = count()
    return lambda request, replicas, now: replicas[next(turn) % len(replicas)]


def least_queue(rng: random.Random) -> Policy:
    return lambda request, replicas, now: min(replicas, key=lambda each: (each.queue, rng.random()))


def by_prefix(rng: random.Random) -> Policy:
    """The server's own: each front knows what it routed, and what the replicas report now and then."""
    fronts: list[PrefixIndex] = []
    reported = 0.0

    def choose(request: Request, replicas: Sequence[Replica], now: float) -> Replica:
        nonlocal reported
        while len(fronts) * FRONT_OF < len(replicas):
            fronts.append(PrefixIndex())
        if len(fronts) > 1 and now - reported > REPORT_SECONDS:
            reported = now
            for front in fronts:
                for each in replicas:
                    front.add([*each.recent][: -1 - max(64, REPORTED // len(replicas)) : -1], each.name)
        index = rng.choice(fronts)
        by_name = {each.name: each for each in replicas}
        queues = {each.name: each.queue for each in replicas}
        order = ranked(len(request.names), index.matched(request.names), queues, MAX_RUNNING, rng)
        index.add(request.names, order[0])
        by_name[order[0]].recent.add(request.names)
        return by_name[order[0]]

    return choose


POLICIES: dict[str, Callable[[random.Random], Policy]] = {
    "round robin": round_robin, "least queue": least_queue, "prefix": by_prefix,
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    ttft: tuple[float, float]  # p50 and p99
    hits: float  # share of prompt tokens that were not read
    requests: int
    busy: float  # share of the time that replicas stepped


def simulate(times: Times, policy: str, replicas: int, rate: float, args: argparse.Namespace) -> Found:
    """Return what the requests saw that came after the first fifth of the time."""
    rng = np.random.default_rng(args.seed)
    choose = POLICIES[policy](random.Random(args.seed))
    all_replicas = [Replica(str(n), times, args.cache_tokens // BLOCK) for n in range(replicas)]
    order = count()
    events: list[tuple[float, int, Request | Replica, list[Request]]] = []
    for begin, chat in chats(rate, args.seconds, rng, args.systems):
        heapq.heappush(events, (begin, next(order), request_of(chat, 0, begin), []))
    ttfts, busy = [], 0.0
    while events:
        now, _, what, done = heapq.heappop(events)
        if now > args.seconds:
            break
        if isinstance(what, Request):
            replica = choose(what, all_replicas, now)
            replica.waiting.append(what)
        else:
            replica = what
            replica.stepping = False
            for request in done:
                assert request.first is not None
                if request.arrival > args.seconds / 5:
                    ttfts.append(request.first - request.arrival)
                turn = request.turn + 1
                if turn < len(request.chat.turns):
                    later = now + request.chat.turns[turn][2]
                    heapq.heappush(events, (later, next(order), request_of(request.chat, turn, later), []))
        if not replica.stepping and replica.queue:
            replica.stepping = True
            end, ended = replica.step(now)
            busy += end - now
            heapq.heappush(events, (end, next(order), replica, ended))
    late = [r for each in all_replicas for r in (*each.waiting, *each.running) if r.first is None]
    ttfts += [args.seconds - r.arrival for r in late if args.seconds / 5 < r.arrival]  # at least
    p50, p99 = np.percentile(ttfts, (50, 99))
    read = sum(each.read for each in all_replicas)
    hits = sum(each.hit for each in all_replicas) / max(1, read)
    return Found((float(p50), float(p99)), hits, len(ttfts), busy / args.seconds / replicas)


def needed(times: Times, policy: str, rate: float, args: argparse.Namespace) -> int:
    """Return the fewest replicas whose TTFT p99 is within the limit, to 1/20, or twice as many."""
    low, high = 0, 2 * args.replicas
    while high - low > max(1, args.replicas // 20):
        middle = (low + high) // 2
        if simulate(times, policy, middle, rate, args).ttft[1] <= args.limit:
            high = middle
        else:
            low = middle
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=Path, default=Path(__file__).with_name("replica_times.json"))
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="chats a second")
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--systems", type=int, default=200, help="system prompts")
    parser.add_argument("--cache-tokens", type=int, default=65536, help="prefix cache of a replica")
    parser.add_argument("--limit", type=float, default=12.0, help="TTFT p99 for the replicas needed, seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    times = Times.read(args.times)
    print(f"{args.replicas} replicas, {args.seconds:g} s, seed {args.seed}")
    print("| chats/s | routing | requests | TTFT p50 | p99 | hit rate | busy |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for rate in args.rates:
        for policy in POLICIES:
            found = simulate(times, policy, args.replicas, rate, args)
            p50, p99 = found.ttft
            print(
                f"| {rate:g} | {policy} | {found.requests} | {p50:.2f} s | {p99:.2f} s | {found.hits:.0%} "
                f"| {found.busy:.0%} |", flush=True,
            )  # fmt: skip
    middle = args.rates[len(args.rates) // 2]
    print(f"\nreplicas for {middle:g} chats/s with TTFT p99 within {args.limit:g} s:")
    for policy in POLICIES:
        print(f"{policy}: {needed(times, policy, middle, args)}", flush=True)


if __name__ == "__main__":
    main()
