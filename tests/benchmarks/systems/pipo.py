"""Pair models (PIPO, lossy) against the models that they were trained from, on one runtime in one precision.

    python tests/benchmarks/systems/pipo.py speed --model ORIGINAL --pairs DIR \\
        --lengths 128 512 1024 2048 4096
    python tests/benchmarks/systems/pipo.py quality --model ORIGINAL --pairs DIR --prompts PROMPTS.jsonl

speed: time to the first token and time a token, in turns with the original's plain decoding, medians with
smallest and largest; and the bytes of keys and values. With the thresholds 0 and 1.5, where all second tokens
are kept or none, these do not depend on the training.
quality: share of second tokens that are kept, by threshold; perplexity of the texts under the original;
small tasks whose answers a program checks. All greedy.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

import specport
from specport.bench.prompts import read_prompts
from specport.core.arrays import to_host
from specport.core.engine import Engine
from specport.core.ports import Block, Model, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.pipeline import Pipeline
from specport.pipo.decoding import PairDecoding
from specport.pipo.load import load
from specport.pipo.model import PairModel, PairRow
from specport.runtime.devices.profiles import cpu_name

GREEDY = SamplingParams()
THRESHOLDS = (0.0, 0.5, 0.8, 0.95, 1.5)
_CHUNK = 256


def decoded_at(pipeline: Pipeline, threshold: float) -> Pipeline:
    """Return a pair model's pipeline with another threshold, on the same loaded model."""
    whole: Any = pipeline.engine.model
    model = PairModel(whole._body, whole.pairs, module=threshold <= 1.0)
    engine = Engine(model, decoding=PairDecoding(model, threshold))
    return Pipeline(engine, pipeline.tokenizer, lossy=pipeline.lossy)


def written(pipeline: Pipeline, ids: Sequence[int], count: int, *, ends: bool = False) -> Generation:
    eos = pipeline.tokenizer.eos_ids if ends else frozenset[int]()
    generation = Generation([*ids], GREEDY, count, eos)
    for _ in pipeline.engine.run([generation]):
        pass
    return generation


def document(pipeline: Pipeline, length: int, number: int) -> list[int]:
    """Return so many tokens of Python's own documentation."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    names = names[7 * number :] + names[: 7 * number]
    ids: list[int] = []
    for name in names:
        ids += pipeline.tokenizer.encode(topics[name])
        if len(ids) >= length:
            return ids[:length]
    raise ValueError(f"there are no {length} tokens")


def entry_bytes(folder: Path, item: int) -> int:
    """Return the bytes of keys and values of an entry of a decoder's cache. item: bytes of a number."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    kept = config.get("num_key_value_heads") or heads
    return int(2 * config["num_hidden_layers"] * kept * width * item)


def speed(args: argparse.Namespace, plain: Pipeline, pairs: Pipeline) -> dict[str, Any]:
    """Return TTFT and TPOT by prompt length, ms, for the original and by threshold."""
    forms = {"original": plain} | {str(t): decoded_at(pairs, t) for t in args.thresholds}
    found: dict[str, Any] = {}
    whole: Any = pairs.engine.model
    layers = entry_bytes(args.pairs / "decoder", args.kv_bytes)
    per_layer = layers // json.loads((args.pairs / "decoder/config.json").read_text())["num_hidden_layers"]
    for length in args.lengths:
        times: dict[str, dict[str, list[float]]] = {name: {"ttft": [], "tpot": []} for name in forms}
        for run in range(-1, args.runs):  # the first is not counted
            ids = document(plain, length, run + 1)
            for name, pipeline in forms.items():
                metrics = written(pipeline, ids, args.new_tokens).metrics
                if run >= 0:
                    times[name]["ttft"].append(1e3 * metrics.ttft_s)
                    times[name]["tpot"].append(1e3 * metrics.tpot_s)
        handle = whole.open(length)
        for start in range(0, length, _CHUNK):
            whole.read([PairRow(handle, ids[start : start + _CHUNK], False)])
        entries, module = handle.body.length, handle.module.length
        whole.close(handle)
        found[str(length)] = {
            "times_ms": times,
            "cache_bytes": {"original": length * layers, "pairs": entries * layers + module * per_layer},
        }
        shown = {n: {k: round(statistics.median(v), 1) for k, v in t.items()} for n, t in times.items()}
        print(length, json.dumps(shown), json.dumps(found[str(length)]["cache_bytes"]), flush=True)
    return found


def perplexity(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> tuple[float, int]:
    """Return the cross-entropy of an answer under a model, in nats, and its number of tokens."""
    text = [*prompt, *answer]
    handle, nats = model.open(len(text)), 0.0
    try:
        for start in range(0, len(text) - 1, _CHUNK):
            chunk = text[start : min(start + _CHUNK, len(text) - 1)]
            logits = np.array(to_host(model.step([Row(handle, Block.chain(chunk))]).logits), np.float64)
            model.commit(handle, range(len(chunk)))
            first = max(len(prompt) - 1 - start, 0)
            rows = logits[first:] - logits[first:].max(axis=1, keepdims=True)
            nexts = text[start + 1 + first : start + 1 + len(chunk)]
            logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            nats -= float(logs[np.arange(len(nexts)), nexts].sum())
    finally:
        model.close(handle)
    return nats, len(answer)


def tasks(count: int) -> Iterator[tuple[str, str, str]]:
    """Yield kind, question and right answer of small tasks."""
    rng = np.random.default_rng(7)
    for _ in range(count):
        a, b = (int(x) for x in rng.integers(2, 30, 2))
        yield "sum", f"What is {a} + {b}? Answer with the number only.", str(a + b)
        n = int(rng.integers(10, 90))
        yield "next", f"Which number comes right after {n}? Answer with the number only.", str(n + 1)
        x, y = (int(v) for v in rng.choice(np.arange(10, 99), 2, replace=False))
        yield "larger", f"Which is larger, {x} or {y}? Answer with the number only.", str(max(x, y))
        yield "copy", f"Repeat this number: {x}{y}", f"{x}{y}"


def is_right(kind: str, text: str, answer: str) -> bool:
    """Return whether the last number of the first line is the answer; of a copy, whether it is in there."""
    line = text.strip().split("\n")[0].replace(",", "")
    numbers = re.findall(r"\d+", line)
    return answer in numbers if kind == "copy" else bool(numbers) and numbers[-1] == answer


def quality(args: argparse.Namespace, plain: Pipeline, pairs: Pipeline) -> dict[str, Any]:
    """Return the figures of texts and tasks, for the original and by threshold."""
    forms = {"original": plain} | {str(t): decoded_at(pairs, t) for t in args.thresholds}
    prompts = [p.text for p in read_prompts(args.prompts, None, ())][:: args.every]
    asked = [*tasks(args.tasks)]
    found: dict[str, Any] = {}
    for name, pipeline in forms.items():
        nats = count = kept = proposed = same = 0.0
        for prompt in prompts:
            ids = pipeline.tokenizer.chat([{"role": "user", "content": prompt}])[-900:]
            text = written(pipeline, ids, args.new_tokens, ends=True)
            answer = text.tokens[len(ids) :]
            more, tokens = perplexity(plain.engine.model, ids, answer)
            nats, count = nats + more, count + tokens
            kept, proposed = kept + text.metrics.num_accepted_tokens, proposed + text.metrics.num_drafts
            same += _common(answer, found.setdefault("answers", {}).setdefault(prompt, answer))
        right: dict[str, int] = {}
        for kind, question, answer_ in asked:
            text_ = pipeline.generate(question, max_new_tokens=24).text
            right[kind] = right.get(kind, 0) + is_right(kind, text_, answer_)
        found[name] = {
            "perplexity": round(math.exp(nats / count), 3),
            "tokens": int(count),
            "kept": round(kept / proposed, 4) if proposed else None,
            "common_beginning": round(same / len(prompts), 1),
            "right": {kind: f"{n}/{args.tasks}" for kind, n in right.items()},
        }
        print(name, json.dumps(found[name]), flush=True)
    del found["answers"]
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two answers begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=("speed", "quality"))
    add("--model", help="the original, as for specport run (default: the embedded one)")
    add("--pairs", type=Path, required=True, help="folder of the pair model")
    add("--device", default="auto")
    add("--precision", default="int8")
    add("--lengths", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096])
    add("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    add("--runs", type=int, default=5)
    add("--new-tokens", type=int, default=48)
    add("--kv-bytes", type=int, default=2, help="bytes of a number in the cache of this device")
    add("--prompts", type=Path, help="prompts as for specport bench")
    add("--every", type=int, default=4, help="take every Nth prompt")
    add("--tasks", type=int, default=25, help="tasks of each kind")
    add("--out", type=Path, help="the figures as JSON")
    args = parser.parse_args()
    if args.part == "quality" and args.prompts is None:
        sys.exit("name --prompts")
    options: dict[str, Any] = {"device": args.device, "precision": args.precision}
    plain = specport.load(args.model, draft="none", prefix_cache=False, **options)
    with closing(plain), closing(load(str(args.pairs), **options)) as pairs:
        print(
            f"{plain.model_name} {args.precision} on {plain.device_name}, {cpu_name()}, greedy; lossy pairs"
        )
        found = (speed if args.part == "speed" else quality)(args, plain, pairs)
    if args.out:
        about = {"device": plain.device_name, "processor": cpu_name(), "precision": args.precision}
        facts = {"about": {**about, "runs": args.runs, "new_tokens": args.new_tokens}, args.part: found}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
