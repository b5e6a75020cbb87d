"""What a target of 7 billion weights costs: conversion, loading, steps, and contexts of 8k and 32k tokens.

    python tests/benchmarks/models/big_model.py big/7b --tokenizer MODEL.gguf
    python tests/benchmarks/models/big_target.py big/7b --json OUT.json

Conversion is the one that any command runs, in its own process. Its memory is sampled as anonymous (what must
fit) and as resident (with pages of mapped files, which the system drops where it needs room). The bar: the
anonymous peak is at most 1.3 times the largest shard, plus the result.

A long context is not computed, which would take hours: 512 tokens are, and their blocks of keys and values
are copied until the cache holds the context. The work of a step is that of a real text of this length. The
planner then writes with n-grams and suffixes at these contexts, beside plain decoding, whose text it must be.

Timings are medians. --parts leaves some out: a folder of IR has nothing to convert.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from memory_peak import sampled
from specport.backends.openvino.paged.cache import BLOCK_SIZE
from specport.backends.openvino.paged.model import PagedModel, PagedSequence

from specport.core.arrays import Array
from specport.core.engine import Engine
from specport.core.policies.drafting import Drafting
from specport.core.ports import Block, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation, KeptCache
from specport.drafters.build import build_policy
from specport.drafters.spec import parse
from specport.models.source import ModelFiles
from specport.progress import progress_bar
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.devices.registry import Loaded
from specport.runtime.loading import Loader
from specport.text.tokenizer import load_tokenizer

PARTS = ("convert", "load", "steps", "contexts", "planner")
BAR = 1.3
PROMPT = 512  # tokens that are computed; whole blocks
WIDTHS = (1, 2, 4, 8, 16)
SPARE = 256  # tokens that may be written behind a context
Facts = dict[str, Any]


def converted(loader: Loader, spec: str, precision: str) -> tuple[ModelFiles, Facts]:
    """Convert the model where the cache does not have it; return its files and what that took."""
    shards = [path.stat().st_size for path in Path(spec).glob("*.safetensors")]
    with sampled() as peak, progress_bar() as bar:

        def show(what: str, share: float) -> None:
            peak.show(what, share)
            bar(what, share)

        files = Loader.on(loader.profile.name, progress=show).files(spec, precision)
    result = sum(path.stat().st_size for path in files.folder.rglob("*") if path.is_file())
    facts: Facts = {
        "seconds": peak.seconds, "anonymous": peak.anonymous, "resident": peak.resident, "result": result,
        "anonymous_by_stage": peak.stages,
    }  # fmt: skip
    if shards:
        most = BAR * max(shards) + result
        facts |= {"largest_shard": max(shards), "source": sum(shards), "bar": most}
        facts["within_bar"] = peak.anonymous <= most
    return files, facts


def loaded(loader: Loader, files: ModelFiles, exact: bool) -> tuple[Loaded, Facts]:
    with sampled() as peak:
        target = loader.target_with(files, exact)
        checked = time.perf_counter()
        if target.prepare is not None:
            target.prepare()
        prepared = time.perf_counter() - checked
    facts = {"seconds": peak.seconds, "prepare_seconds": prepared, "anonymous": peak.anonymous}
    return target, facts | {"resident": peak.resident, "notes": list(target.notes), **memory()}


def memory() -> Facts:
    info = psutil.Process().memory_info()
    return {"anonymous_now": info.rss - getattr(info, "shared", 0), "resident_now": info.rss}


def ids(model: PagedModel, count: int) -> list[int]:
    return np.random.default_rng(count).integers(0, 150_000, count).tolist()


def beginning(model: PagedModel) -> tuple[PagedSequence, float]:
    """Return a sequence of PROMPT computed tokens, and the seconds that they took."""
    handle = model.open(PROMPT)
    tokens = ids(model, PROMPT)
    began = time.perf_counter()
    model.step([Row(handle, Block.chain(tokens), logits="last")])
    seconds = time.perf_counter() - began
    model.commit(handle, range(PROMPT))
    return handle, seconds


@contextmanager
def filled(model: PagedModel, first: PagedSequence, context: int) -> Iterator[PagedSequence]:
    """Yield a sequence whose cache holds `context` tokens: copies of the blocks of `first`."""
    handle = model.fork(first, PROMPT)
    model.cache.extend(handle.table, context + SPARE)
    whole = PROMPT // BLOCK_SIZE
    for place in range(whole, context // BLOCK_SIZE):
        model.cache.copy_block(handle.table[place % whole], handle.table[place])
    handle.settle(context)
    try:
        yield handle
    finally:
        model.close(handle)


def steps(model: PagedModel, handle: PagedSequence, count: int) -> Facts:
    """Return the median ms of a step by its new tokens, nothing of which is kept."""
    found: Facts = {}
    for width in WIDTHS:
        times = []
        for number in range(1 + count):
            block = Block.chain(ids(model, width + 100 * number)[:width])
            began = time.perf_counter()
            output = model.step([Row(handle, block)])
            times.append(1e3 * (time.perf_counter() - began))
            assert not output.refused and np.isfinite(np.asarray(output.logits)).all()
            model.commit(handle, ())
        found[str(width)] = statistics.median(times[1:])
    return found


def context_facts(model: PagedModel, first: PagedSequence, context: int, count: int) -> Facts:
    before = memory()["anonymous_now"]
    began = time.perf_counter()
    with filled(model, first, context) as handle:
        seconds = time.perf_counter() - began
        grown = memory()["anonymous_now"] - before
        blocks = len(handle.table)
        return {
            "context": context, "fill_seconds": seconds, "blocks": blocks, "cache_bytes": model.cache.nbytes,
            "most_bytes": model.cache.bytes_for(blocks), "anonymous_grown": grown,
            "step_ms": steps(model, handle, count),
        }  # fmt: skip


class Repeat:
    """Logits processor: the text goes on as it did PROMPT tokens before, as where a model quotes."""

    is_identity = False

    def __call__(self, logits: Array, prefix: Sequence[int]) -> Array:
        changed = np.array(logits)
        changed[prefix[len(prefix) - PROMPT]] += 1e4
        return changed


def written(
    engine: Engine, handle: PagedSequence, tokens: list[int], count: int, quotes: bool
) -> tuple[list[int], Facts]:
    """Write behind a filled cache; the engine takes it for that of an earlier turn."""
    kept = KeptCache()
    engine._scheduler.caches.keep(kept, handle, tokens[: handle.length])
    text = Generation(tokens, SamplingParams(), count, kept=kept, processors=[Repeat()] if quotes else ())
    began = time.perf_counter()
    for _ in engine.run([text]):
        pass
    seconds = time.perf_counter() - began
    metrics = text.metrics
    engine._scheduler.caches.take(kept)
    facts: Facts = {
        "seconds": seconds, "tokens": text.num_output_tokens, "finish": text.finish_reason,
        "steps": metrics.num_steps, "drafted": metrics.num_draft_tokens,
        "accepted": metrics.num_accepted_tokens,
    }  # fmt: skip
    return text.tokens[-text.num_output_tokens :], facts


def planned(
    loader: Loader, target: Loaded, files: ModelFiles, first: PagedSequence, context: int, count: int
) -> Facts:
    """Return what the planner does at a context, and whether the texts are that of plain decoding.

    Of two texts one is the random model's own, which no drafter foresees, and one quotes the context.
    """
    model = target.model
    assert isinstance(model, PagedModel)
    tokenizer = load_tokenizer(files.folder)
    found: Facts = {"context": context}
    tokens = (ids(model, PROMPT) * -(-context // PROMPT))[:context]
    for quotes in (False, True):
        texts, rows = [], {}
        for name in ("none", "ngram", "suffix"):
            policy = build_policy(
                parse(name), model, tokenizer, {}, drafting=Drafting("planned"), costs=loader.costs(target)
            )
            with filled(model, first, context) as handle:
                engine = Engine(model, policy)
                text, rows[name] = written(engine, handle, [*tokens, tokens[0]], count, quotes)
            texts.append(text)
        found["quotes" if quotes else "own text"] = rows | {"same": all(text == texts[0] for text in texts)}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a Hugging Face folder, or a folder with IR")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--cache-memory", metavar="SIZE")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--contexts", type=int, nargs="+", default=[8192, 32256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="written by the planner at each context")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    loader = Loader.on(options.device, options.threads, cache_memory=options.cache_memory)
    facts: Facts = {
        "processor": cpu_name(), "cores": os.cpu_count(), "profile": loader.profile.name,
        "precision": options.precision, "exact": not options.fast,
    }  # fmt: skip

    def note(part: str, value: object) -> None:
        facts[part] = value
        print(part, json.dumps(value, indent=1), flush=True)
        if options.json:
            options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    files, conversion = converted(loader, options.model, options.precision)
    if "convert" in options.parts:
        note("convert", conversion)
    target, load = loaded(loader, files, not options.fast)
    model = target.model
    assert isinstance(model, PagedModel), "this device has fixed shapes"
    if "load" in options.parts:
        note("load", load | {"cache_limit": model.cache.bytes_for(model.cache.max_blocks)})
    first, seconds = beginning(model)
    note("prompt_tokens_per_second", PROMPT / seconds)
    contexts = options.contexts
    if "steps" in options.parts:
        note("step_ms", steps(model, first, options.rounds))
    if "contexts" in options.parts:
        note("contexts", [context_facts(model, first, n, options.rounds) for n in contexts])
    if "planner" in options.parts:
        note("planner", [planned(loader, target, files, first, n, options.tokens) for n in contexts])


if __name__ == "__main__":
    main()
