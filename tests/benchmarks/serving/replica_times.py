"""Measure the step times that `replica_simulation.py` reckons with, on this machine.

    python tests/benchmarks/serving/replica_times.py [--model MODEL] [--draft DRAFT] [--threads N] \\
        > times.json

Rounds of the engine are timed with 1, 2, 4 ... sequences that decode, drafts included, and one with a prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import datetime, timezone
from typing import Any

import specport
from specport.core.scheduler import PREFILL_CHUNK
from specport.core.sequence import Generation
from specport.options import GenerationOptions
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.versions import installed

ROWS = (1, 2, 4, 8, 16, 32)
ROUNDS = 12  # that are timed for each number of rows
TOPICS = (
    "rivers",
    "stones",
    "gardens",
    "letters",
    "winters",
    "music",
    "markets",
    "bridges",
    "islands",
    "trains",
)


def begun(pipeline: specport.Pipeline, text: str, tokens: int) -> Generation:
    request = pipeline.request(text, GenerationOptions(max_new_tokens=tokens, ignore_eos=True))
    return pipeline.begin(request, pipeline.text_of(request))


def decoding(pipeline: specport.Pipeline, rows: int) -> dict[str, float]:
    """Return the seconds of a round of so many sequences, and the tokens that each of them gains."""
    engine = pipeline.engine
    running = [
        begun(pipeline, f"Write {n + 3} lines about {TOPICS[n % len(TOPICS)]}.", 400) for n in range(rows)
    ]
    for each in running:
        engine.add(each)
    while not all(each.num_output_tokens for each in running):
        engine.step()
    seconds, before = [], sum(each.num_output_tokens for each in running)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    gained = sum(each.num_output_tokens for each in running) - before
    for each in running:
        each.cancel()
    engine.tidy()
    return {"rows": rows, "seconds": statistics.median(seconds), "tokens": gained / ROUNDS / rows}


def reading(pipeline: specport.Pipeline) -> float:
    """Return the seconds for each token of a prompt that is read alone."""
    engine, found = pipeline.engine, []
    for n in range(3):
        generation = begun(pipeline, f"{n} " + " ".join(TOPICS * 100), 4)
        engine.add(generation)
        start = time.perf_counter()
        engine.step()
        found.append((time.perf_counter() - start) / PREFILL_CHUNK)
        generation.cancel()
        engine.tidy()
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("model", "draft", "device"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--threads", type=int)
    options: dict[str, Any] = {n: v for n, v in vars(parser.parse_args()).items() if v is not None}
    with specport.load(**options, prefix_cache=False) as pipeline:
        pipeline.generate("Hello", max_new_tokens=8)
        found = {
            "model": pipeline.model_name, "draft": pipeline.draft_name, "device": pipeline.device_name,
            "processor": cpu_name(), "threads": options.get("threads"),
            "date": datetime.now(timezone.utc).date().isoformat(), "versions": installed(("openvino",)),
            "prompt_token_s": reading(pipeline),
            "decoding": [decoding(pipeline, rows) for rows in ROWS],
        }  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
