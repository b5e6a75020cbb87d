"""What suffix decoding costs a token at a long context, without a model.

    python tests/benchmarks/decoding/suffix_speed.py --tokens 100000

The context is this package's own source, over and over with small changes, as token-like words. Reports µs:
building (once a token), matching (the index is extended by a token and searched), the whole proposal of a
planner's tree, also with a history of the same size, and `ngram` beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import specport
from specport.core.ports import DraftRequest, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.drafters.builtin import LEAST_PLANNED
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.suffix import SuffixDrafter
from specport.drafters.retrieval.suffix_index import Ending, SuffixIndex
from specport.runtime.devices.profiles import cpu_name

ROUNDS = 2000


def corpus(num_tokens: int) -> list[int]:
    """Words, blanks and signs of the source as ids; each pass over it has 2 % of them replaced."""
    files = sorted(Path(specport.__file__).parent.rglob("*.py"))
    words = [word for path in files for word in re.findall(r"\w+|\s+|.", path.read_text(encoding="utf-8"))]
    ids = np.unique(np.array(words), return_inverse=True)[1]
    rng = np.random.default_rng(0)
    text: list[int] = []
    while len(text) < num_tokens:
        changed = rng.random(len(ids)) < 0.02
        text += np.where(changed, rng.permutation(ids), ids).tolist()
    return text[:num_tokens]


def measure(step: Callable[[list[int]], object], context: list[int], coming: list[int]) -> dict[str, float]:
    """µs of `step` at each of the coming tokens; the first, which may build an index, apart."""
    times = []
    for token in coming:
        context.append(token)
        began = time.perf_counter()
        step(context)
        times.append((time.perf_counter() - began) * 1e6)
    first, rest = times[0], sorted(times[1:])
    return {
        "first_ms": round(first / 1e3, 1),
        "median": round(statistics.median(rest), 1),
        "mean": round(statistics.mean(rest), 1),
        "p99": round(rest[int(0.99 * len(rest))], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=100_000)
    args = parser.parse_args()

    whole = corpus(2 * args.tokens + ROUNDS)
    old, text, coming = whole[: args.tokens], whole[args.tokens : -ROUNDS], whole[-ROUNDS:]
    began = time.perf_counter()
    index = SuffixIndex(text)
    building = (time.perf_counter() - began) / len(text) * 1e6

    def match(context: list[int]) -> None:
        index.extend(context[-1:])
        index.find(Ending.of(context), 20)

    sampler = Sampler(SamplingParams())

    def proposing(drafter: SuffixDrafter | NgramDrafter) -> Callable[[list[int]], object]:
        return lambda context: drafter.propose([DraftRequest(0, context, Plan(20), sampler)])

    history = History([np.array(old, dtype=np.int32)])
    suffix = {"tokens_per_match": None, "least": LEAST_PLANNED, "branching": True}
    found = {
        "matching": measure(match, [*text], coming),
        "suffix": measure(proposing(SuffixDrafter(**suffix)), [*text], coming),  # type: ignore[arg-type]
        "suffix with a history": measure(proposing(SuffixDrafter(history, **suffix)), [*text], coming),  # type: ignore[arg-type]
        "suffix alone, by its own rule": measure(proposing(SuffixDrafter()), [*text], coming),
        "ngram": measure(proposing(NgramDrafter(tokens_per_match=None)), [*text], coming),
    }
    print(json.dumps({"device": cpu_name(), "tokens": args.tokens, "building": round(building, 2)}))
    for name, figures in found.items():
        print(f"{name:32} {json.dumps(figures)}")


if __name__ == "__main__":
    main()
