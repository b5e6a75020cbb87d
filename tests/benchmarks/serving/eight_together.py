"""Tokens a second of eight sequences that share steps, against the same eight one after another.

    python tests/benchmarks/serving/eight_together.py --model MODEL --draft ngram --json OUT.json

Both ways decode the same prompts greedily to the same number of tokens, in turns, in one process; the texts
are compared token for token. Reports the median of the runs and their spread, for plain decoding and for the
drafters that are named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import specport
from specport.pipeline import Pipeline
from specport.runtime.devices.profiles import cpu_name

PROMPTS = (
    "Write a Python function that merges two sorted lists.",
    "Why does the moon have phases? Explain it to a class of ten-year-olds.",
    "Translate into German: The train was late because of the snow.",
    "A farmer sells 48 eggs in April and half as many in May. How many in both?",
    "Write a polite e-mail that asks to move Tuesday's meeting to Thursday.",
    "List five things to pack for a week in the mountains.",
    "What is the difference between a list and a tuple in Python?",
    "Summarize in one sentence: The council agreed to build the bridge in two stages.",
)


def together(pipeline: Pipeline, tokens: int) -> tuple[list[list[int]], float]:
    """Return the token ids of all prompts, decoded at once, and the seconds."""
    began = time.perf_counter()
    results = pipeline.generate([*PROMPTS], max_new_tokens=tokens)
    return [result.token_ids for result in results], time.perf_counter() - began


def in_turn(pipeline: Pipeline, tokens: int) -> tuple[list[list[int]], float]:
    """Return the token ids of all prompts, decoded one after another, and the seconds."""
    began = time.perf_counter()
    results = [pipeline.generate(prompt, max_new_tokens=tokens) for prompt in PROMPTS]
    return [result.token_ids for result in results], time.perf_counter() - began


def measure(draft: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one drafter: tokens a second both ways, and whether the texts are the same."""
    with specport.load(args.model, draft=draft, device=args.device, precision=args.precision) as pipeline:
        for decode in (together, in_turn):
            decode(pipeline, 8)  # warms up
        rates: dict[str, list[float]] = {"together": [], "in_turn": []}
        same = True
        for _ in range(args.runs):
            texts = {}
            for name, decode in (("together", together), ("in_turn", in_turn)):
                texts[name], seconds = decode(pipeline, args.tokens)
                rates[name].append(sum(map(len, texts[name])) / seconds)
            same = same and texts["together"] == texts["in_turn"]
        ratios = [a / b for a, b in zip(rates["together"], rates["in_turn"], strict=True)]
        return {
            "model": pipeline.model_name, "draft": draft, "exact": pipeline.exact,
            "tokens_per_second": rates, "ratio": statistics.median(ratios), "ratios": ratios,
            "same_texts": same,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as for specport run (default: the embedded one)")
    parser.add_argument("--precision")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--draft", action="append", help="drafters beside plain decoding; may be repeated")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="write the figures as JSON too")
    args = parser.parse_args()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{cpu_name()}, load {load:.1f}, {args.tokens} tokens, {args.runs} runs")
    rows = []
    for draft in ("none", *(args.draft or ())):
        row = measure(draft, args)
        rows.append(row)
        medians = {name: statistics.median(values) for name, values in row["tokens_per_second"].items()}
        print(
            f"{row['model']} {draft:20} together {medians['together']:7.1f} tokens/s, in turn "
            f"{medians['in_turn']:7.1f}, ratio {row['ratio']:.2f} ({min(row['ratios']):.2f} to "
            f"{max(row['ratios']):.2f}), same texts: {row['same_texts']}",
            flush=True,
        )
    if args.json:
        about = {"processor": cpu_name(), "load": load, "tokens": args.tokens, "runs": args.runs}
        args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
