"""How fast the target writes text for a draft to learn from, and where the time goes.

    python tests/benchmarks/decoding/text_writing.py --model MODEL --dialogues 64

The target answers fixed prompts (and, every other shard, prompts that it makes up). Reports tokens a second
and the share of each part: reading prompts, decoding by the number of sequences in a step, the runtime's
inference, top-k, and the rest of our own code.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specport.quantize.text import shards, turns, writer
from specport.quantize.text.dialogues import read_shard

from specport.core.ports import Row, StepOutput
from specport.progress import silent
from specport.runtime.loading import Loader
from specport.text.tokenizer import Tokenizer, load_tokenizer

TASKS = (
    "Write a Python function that {}.", "Explain in three sentences how to write code that {}.",
    "Write unit tests for a function that {}.", "Write a JavaScript function that {}.",
)  # fmt: skip
THINGS = (
    "sorts a list of names by their last letter", "counts the words of a text file",
    "merges two dictionaries", "checks whether a number is prime", "parses a date such as 2024-05-31",
    "reverses a linked list", "computes the median of a stream of numbers", "finds all anagrams of a word",
)  # fmt: skip
PROMPTS = tuple(task.format(thing) for thing in THINGS for task in TASKS)  # 32: one shard of the writer


@dataclass(frozen=True)
class Step:
    """One call of the model: its rows, their new tokens, seconds of the runtime and of the whole call."""

    rows: int
    tokens: int
    prompt: bool
    runtime: float
    seconds: float


@dataclass
class Watched:
    """A model that keeps a record of its steps."""

    model: Any
    steps: list[Step] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def step(self, rows: Sequence[Row]) -> StepOutput:
        began = time.perf_counter()
        output: StepOutput = self.model.step(rows)
        seconds = time.perf_counter() - began
        tokens = sum(len(row.block) for row in rows)
        self.steps.append(Step(len(rows), tokens, tokens > len(rows), output.seconds, seconds))
        return output


@dataclass
class Written:
    """What a run of the writer gave, its seconds, and those of them that went into top-k."""

    dialogues: int
    prompt_tokens: int
    answer_tokens: int
    seconds: float
    top_k: float


def write(model: Watched, tokenizer: Tokenizer, dialogues: int) -> Written:
    """Have the target write that many dialogues, to whole shards. All that knows the writer is here."""
    spent = 0.0
    top = writer.likeliest

    def timed(logits: Any) -> Any:
        nonlocal spent
        began = time.perf_counter()
        found = top(logits)
        spent += time.perf_counter() - began
        return found

    writer.likeliest = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            least = -(-dialogues // turns.SHARD)
            paths = shards.write_shards(
                lambda: model, tokenizer, Path(folder), 1, 0, PROMPTS, silent, least=least
            )
            seconds = time.perf_counter() - began
            texts = [text for path in paths for text in read_shard(path)]
    finally:
        writer.likeliest = top
    prompts = sum(text.start for text in texts)
    answers = sum(len(text.tokens) - text.start for text in texts)
    return Written(len(texts), prompts, answers, seconds, spent)


def show_writing(written: Written, steps: Sequence[Step]) -> None:
    """Print tokens a second and the profile."""
    total = written.seconds
    both = written.prompt_tokens + written.answer_tokens
    print(f"{written.dialogues} dialogues in {total:.1f} s")
    counts = {"answers": written.answer_tokens, "prompts": written.prompt_tokens, "all": both}
    for name, count in counts.items():
        print(f"{name:10} {count:7} tokens {count / total:8.1f} tokens/s")
    runtime = sum(step.runtime for step in steps)
    inside = sum(step.seconds for step in steps)
    reading = [step for step in steps if step.prompt]
    parts = {
        "runtime inference": runtime,
        "  of it reading prompts": sum(step.runtime for step in reading),
        "rest of Model.step": inside - runtime,
        "top-k": written.top_k,
        "rest": total - inside - written.top_k,
    }
    for name, seconds in parts.items():
        print(f"{name:24} {seconds:8.2f} s {seconds / total:7.1%}")
    print(f"prompt steps: {len(reading)}, {sum(step.tokens for step in reading)} tokens")
    print(f"{'sequences':>12} {'steps':>6} {'tokens':>7} {'median ms':>10} {'s in all':>9} {'tokens/s':>9}")
    decoding = [step for step in steps if not step.prompt]
    for low, high in ((1, 1), (2, 4), (5, 8), (9, 16), (17, 24), (25, 31), (32, 1 << 30)):
        some = [step for step in decoding if low <= step.rows <= high]
        if some:
            seconds, tokens = sum(step.seconds for step in some), sum(step.tokens for step in some)
            middle = 1e3 * statistics.median(step.seconds for step in some)
            name = f"{low} or more" if high > 1 << 20 else f"{low} to {high}"
            cells = f"{len(some):6} {tokens:7} {middle:10.1f} {seconds:9.2f} {tokens / seconds:9.1f}"
            print(f"{name:>12} {cells}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exact", action="store_true", help="exact kernels instead of the fast ones")
    parser.add_argument("--model", help="as for specport run (default: the embedded one)")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--device", default="xeon")
    parser.add_argument("--dialogues", type=int, default=64)
    args = parser.parse_args()
    loader = Loader.on(args.device)
    files = loader.files(args.model, args.precision)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{files.name} {files.precision} on {loader.profile.name}, load {load:.1f}", flush=True)
    watched = Watched(loader.target_with(files, args.exact).model)
    written = write(watched, load_tokenizer(files.folder), args.dialogues)
    show_writing(written, watched.steps)


if __name__ == "__main__":
    main()
