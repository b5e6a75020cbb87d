"""Time the conversion of a model with two installations of the packages, in turns, and compare their texts.

    python tests/benchmarks/decoding/two_stacks.py --python NEW/bin/python --python OLD/bin/python \\
        --model MODEL [--model MODEL ...] [--precision int4] [--rounds 3] [--json OUT.json]

Each python has specport installed, with packages of its own. Each run is a process with an empty cache that
loads the model, which converts it, and loads it once more, which does not; the difference is the conversion.
Then it answers the prompts of `record_prompts.json` greedily. Exits with 1 where the texts differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).with_name("record_prompts.json")
RUN = """
import json, sys, time
from importlib import metadata
import specport
a = json.load(sys.stdin)
options = {"device": "xeon", "precision": a["precision"], "threads": a["threads"], "draft": "none"}
limit, seconds, ids = {"max_new_tokens": a["tokens"]}, [], []
for again in (False, True):
    began = time.perf_counter()
    with specport.load(a["model"], **options) as p:
        seconds.append(time.perf_counter() - began)
        if again:
            ids = [p.generate(x["prompt"], raw=x["raw"], **limit).token_ids for x in a["prompts"]]
versions = {n: metadata.version(n) for n in ("transformers", "optimum-intel", "openvino", "nncf", "torch")}
found = {"conversion_s": seconds[0] - seconds[1], "load_s": seconds[1], "ids": ids, "versions": versions}
print(json.dumps(found))
"""


def run(python: str, model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Convert, load and answer in a process of its own."""
    prompts = json.loads(PROMPTS.read_text(encoding="utf-8"))[: args.prompts]
    asked = {
        "model": model, "precision": args.precision, "threads": args.threads, "tokens": args.tokens,
        "prompts": prompts,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [python, "-c", RUN], input=json.dumps(asked), capture_output=True, text=True, check=False,
            cwd=cache, env={**os.environ, "SPECPORT_CACHE": cache},
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"{python} failed on {model}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--python", action="append", required=True, help="two interpreters")
    add("--model", action="append", required=True)
    add("--precision", default="int8")
    add("--rounds", type=int, default=3)
    add("--prompts", type=int, default=24)
    add("--tokens", type=int, default=48)
    add("--threads", type=int, default=2)
    add("--json", type=Path)
    args = parser.parse_args()
    equal, kept = True, []
    print("| model | transformers | optimum-intel | conversion (s) | load (s) | texts equal |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for model in args.model:
        runs: dict[str, list[dict[str, Any]]] = {python: [] for python in args.python}
        for _ in range(args.rounds):
            for python in args.python:
                runs[python].append(run(python, model, args))
        first = runs[args.python[0]][0]["ids"]
        for found in runs.values():
            same = sum(ids == other for ids, other in zip(found[0]["ids"], first, strict=True))
            equal = equal and all(one["ids"] == first for one in found)
            times = [sorted(one[name] for one in found) for name in ("conversion_s", "load_s")]
            cells = [f"{statistics.median(t):.1f} ({t[0]:.1f} to {t[-1]:.1f})" for t in times]
            versions = found[0]["versions"]
            row = (
                Path(model).name, versions["transformers"], versions["optimum-intel"], *cells,
                f"{same} of {len(first)}",
            )  # fmt: skip
            print("| " + " | ".join(row) + " |", flush=True)
            kept.append(
                {"model": Path(model).name, "runs": [{**one, "ids": None} for one in found], "equal": same}
            )
    if args.json:
        args.json.write_text(
            json.dumps(
                {
                    "settings": {k: v for k, v in vars(args).items() if k not in ("json", "python", "model")},
                    "results": kept,
                },
                indent=1,
            )
            + "\n"
        )
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
