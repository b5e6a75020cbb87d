"""Time the agent of examples/agent_core_ultra.py: plain and speculative, a first and a second similar task.

    python tests/benchmarks/agents/agent_task.py --model MODEL [--draft DRAFT] [--device xeon] [--rounds 3]

Each round runs in a process of its own for each way to draft, in turn: `none`, and the draft, which keeps in
memory what was written in the first task. Both have the prefix cache. The lines of code that the agent writes
must be the same in both, as greedy text is. Medians of the rounds are printed as a table, and all as JSON.
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

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
import agent_core_ultra as example

from specport.agents import SpecportModel

SHOWN = ("seconds", "ttft_s", "decode_s", "num_output_tokens", "num_steps", "acceptance_rate", "num_lines")


def child(options: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """Run the tasks one after the other in this process."""
    files = sorted(example.DOCUMENTS.glob("*.txt"))
    with SpecportModel(**options, max_tokens=300) as model, tempfile.TemporaryDirectory() as folder:
        model.generate([{"role": "user", "content": "Hello"}], max_tokens=4)
        return [
            example.run(model, files, Path(folder) / f"{i}.pptx", task, steps=steps, quiet=True)
            for i, task in enumerate(example.TASKS)
        ]


def in_process(options: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(options), "--steps", str(steps)],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--draft", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--draft-device")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, help="file for all figures as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(args.child), args.steps)))
        return
    common = {"model": args.model, "device": args.device}
    ways = {
        "plain": {**common, "draft": "none"},
        args.draft: {**common, "draft": args.draft, "draft_device": args.draft_device},
    }
    rounds: list[dict[str, list[dict[str, Any]]]] = []
    for number in range(args.rounds):
        rounds.append({name: in_process(options, args.steps) for name, options in ways.items()})
        print(f"round {number + 1} of {args.rounds} is done", file=sys.stderr)
        if args.out:
            args.out.write_text(json.dumps(rounds, indent=1), encoding="utf-8")
    same = all(
        [task["lines"] for task in each["plain"]] == [task["lines"] for task in each[args.draft]]
        for each in rounds
    )
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "")
    print(f"| task | draft | {' | '.join(SHOWN)} | finished |\n|{' --- |' * (len(SHOWN) + 3)}")
    for i in range(len(example.TASKS)):
        for name in ways:
            runs = [each[name][i] for each in rounds]
            medians = [statistics.median(float(run[figure]) for run in runs) for figure in SHOWN]
            finished = f"{sum(run['finished'] for run in runs)}/{len(runs)}"
            shown = " | ".join(f"{value:.2f}" for value in medians)
            print(f"| {i + 1} | `{name}` | {shown} | {finished} |")
    for i in range(len(example.TASKS)):
        plain, fast = (
            statistics.median(each[name][i]["seconds"] for each in rounds) for name in ("plain", args.draft)
        )
        print(f"task {i + 1}: {plain / fast:.2f} times as fast as plain")
    print("the agent did the same in all runs" if same else "THE RUNS DIFFER: greedy text must be the same")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
