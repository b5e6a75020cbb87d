"""Summarise runs of examples/rl_rollouts.py: a table, a plot, and the law of what the engine writes.

python tests/benchmarks/systems/rl_results.py CE=rl-ce e2e-TV=rl-tv --plot rl.svg
python tests/benchmarks/systems/rl_results.py --law --model rl-ce/model --draft HEAD --start MODEL

--law loads the model START with its draft, replaces its weights by those of --model, and compares sampled
texts with the exact law of the replaced weights: the first tokens by chi-square, with drafts and without.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))

import ending
from specport.quantize.rl import record, report

import specport
from specport.conformance.laws import laws_of
from specport.conformance.steps import Probe
from specport.core.engine import Engine
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.errors import InvalidInput

PROMPTS = (
    "What is 7 + 5? Answer with one short sentence that ends with the result.",
    "Write the numbers from 3 to 8, separated by commas, and nothing else.",
)
LENGTH = 3  # tokens whose law is checked


def law(args: argparse.Namespace) -> None:
    from safetensors.torch import load_file

    pipeline = specport.load(
        args.start, draft=args.draft, device="torch-cpu", precision=args.precision, policy="fixed",
        num_draft_tokens=3, prefix_cache=False,
    )  # fmt: skip
    pipeline.update_weights(load_file(Path(args.model) / "model.safetensors"))
    params = SamplingParams(temperature=1.0)
    engine = pipeline.engine
    print("| prompt | texts by | tokens | chi-square | bound at 1e-5 | accepted of drafted |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for prompt in PROMPTS:
        ids = pipeline.tokenizer.chat([{"role": "user", "content": prompt}])
        probe = Probe(engine.model)
        handle = engine.model.open()
        probe.feed(handle, [ids[:-1]])
        laws = laws_of(probe, handle, ids[-1], params, LENGTH)
        engine.model.close(handle)
        for name, own in (("drafts", engine), ("plain", engine.beside(None))):
            texts, share = sampled(own, ids, params, args.texts)
            for n, found in enumerate(laws, 1):
                statistic, bound = found.chi_square([text[:n] for text in texts])
                row = (prompt.split()[0], name, n, f"{statistic:.1f}", f"{bound:.1f}", share)
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


def sampled(
    engine: Engine, ids: list[int], params: SamplingParams, count: int
) -> tuple[list[tuple[int, ...]], str]:
    """Return the first tokens of so many seeded texts, and the share of drafts that were accepted."""
    texts, drafted, accepted = [], 0, 0
    for first in range(0, count, 32):
        batch = [
            Generation([*ids], SamplingParams(temperature=params.temperature, seed=seed), LENGTH + 2)
            for seed in range(first, min(count, first + 32))
        ]
        for _ in engine.run(batch):
            pass
        texts += [tuple(g.tokens[len(ids) : len(ids) + LENGTH]) for g in batch]
        drafted += sum(g.metrics.num_draft_tokens for g in batch)
        accepted += sum(g.metrics.num_accepted_tokens for g in batch)
    return texts, f"{accepted} of {drafted}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Summarise runs of examples/rl_rollouts.py.")
    parser.add_argument("runs", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--plot", type=Path, help="write a plot of the runs to this .svg or .png")
    parser.add_argument("--law", action="store_true", help="check the law of sampled texts")
    parser.add_argument(
        "--start", help="with --law: the model that is loaded (default: SmolLM2-135M-Instruct)"
    )
    parser.add_argument("--model", help="with --law: folder whose weights replace those of --start")
    parser.add_argument("--draft", default="ngram", help="with --law")
    parser.add_argument("--precision", default="bf16", help="with --law")
    parser.add_argument("--texts", type=int, default=600, help="with --law: sampled texts of a prompt")
    args = parser.parse_args()
    runs: dict[str, Any] = {}
    for part in args.runs:
        name, _, folder = part.partition("=")
        runs[name] = record.read(Path(folder))
        if not runs[name]:
            raise InvalidInput(f"there is no run in {folder!r}", "write it like CE=FOLDER")
    if runs:
        print(report.table(runs))
    if args.plot and runs:
        report.draw(runs, args.plot)
    if args.law:
        if args.model is None:
            raise InvalidInput("--law needs --model", "name the folder of a trained model")
        law(args)


if __name__ == "__main__":
    ending.run(main)
