"""Graft's variants beside the draft model alone and token recycling alone, on one pair of models.

    python tests/benchmarks/systems/graft_variants.py --model TARGET --draft DRAFT --prompts FILE \\
        --out results.json

Each prompt is decoded by every method in turn, so that the machine's moods fall on all alike; plain decoding
goes along, and every text must equal its. Printed are decode speed over plain decoding (tokens a second
behind the first, mean over prompts), ms a token, tokens and nodes a round, and what a round drafts and
verifies in ms. Graft's thresholds are those that `specport calibrate` kept for the pair, if it did. With
--calibrate they are set first, by recordings of every other prompt, and the rest is measured; that needs the
costs that `specport calibrate` measured of both models.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specport.bench.prompts import read_prompts
from specport.calibration import grafts
from specport.core.engine import Engine
from specport.core.metrics import Metrics
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Drafter
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.drafters.retrieval.suffix import SuffixDrafter
from specport.drafters.tree.graft import (
    CHECKPOINTS,
    VARIANTS,
    DraftedRound,
    GraftDrafter,
    Variant,
    level_width,
)
from specport.drafters.tree.graft_thresholds import RoundCosts
from specport.drafters.tree.level_proposer import ModelLevels
from specport.progress import progress_bar
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.loading import Loader
from specport.runtime.stored import measurements
from specport.text.tokenizer import load_tokenizer

LABELS = {
    "dynamic": "EAGLE-2's tree", "root": "Graft(ROOT)", "tail": "Graft(TAIL)", "graft": "Graft",
}  # fmt: skip
UNCALIBRATED = "Graft, uncalibrated"


class Pair:
    """The two models, loaded once; every method runs on them."""

    def __init__(self, args: argparse.Namespace) -> None:
        loader = Loader.on(args.device, args.threads)
        self.files, self.target = loader.target(args.model, args.precision, exact=True)
        self.tokenizer = load_tokenizer(self.files.folder)
        draft, self.draft = loader.draft(
            args.draft, args.draft_precision, self.files, self.tokenizer, self.target
        )
        self.costs = loader.costs(self.target), loader.costs(self.draft)
        self.length = Fixed(args.depth, tuple(args.branches))
        self.budget = min(args.budget, self.length.plan().max_nodes)
        self.window, self.num = args.window, args.max_new_tokens
        self.kept = measurements.find_pair(self.target.key, draft.files.fingerprint).graft

    def levels(self) -> ModelLevels:
        vocab = self.target.model.vocab_size
        return ModelLevels(self.draft.model, vocab, self.draft.head_tokens, window=self.window)

    def graft(self, variant: Variant, *, suffix: bool = False, **options: Any) -> GraftDrafter:
        retrieval = [RecycleDrafter(self.target.model.vocab_size)]
        return GraftDrafter(
            self.levels(), [SuffixDrafter(), *retrieval] if suffix else retrieval, variant,
            budget=self.budget, **options,
        )  # fmt: skip

    def methods(self, variants: Mapping[str, Variant]) -> dict[str, Drafter | None]:
        vocab = self.target.model.vocab_size
        return {
            "plain": None,
            "model": ModelDrafter(self.draft.model, vocab, self.draft.head_tokens, window=self.window),
            "recycle": RecycleDrafter(vocab),
            **{LABELS[name]: self.graft(variant) for name, variant in variants.items()},
            UNCALIBRATED: self.graft(VARIANTS["graft"]),
            "Graft, suffix first": self.graft(variants["graft"], suffix=True),
        }

    def encode(self, prompt: str) -> list[int]:
        return list(self.tokenizer.chat([{"role": "user", "content": prompt}]))

    def decode(self, drafter: Drafter | None, prompt: str) -> tuple[list[int], Metrics]:
        length = Fixed(5) if isinstance(drafter, ModelDrafter) else self.length
        policy = FirstProposal([drafter], lambda: length) if drafter else None
        eos = frozenset(self.tokenizer.eos_ids)
        generation = Generation(self.encode(prompt), SamplingParams(), self.num, eos)
        for _ in Engine(self.target.model, policy).run([generation]):
            pass
        return generation.tokens[generation.num_prompt_tokens :], generation.metrics

    def calibrated(self, prompts: list[str]) -> Variant:
        """Graft with thresholds from these prompts."""
        if not all(costs.known for costs in self.costs):
            raise SystemExit("the models were never timed: run specport calibrate with both first")
        width = level_width(self.budget, self.length.num_draft_tokens)
        target, draft = self.costs

        def make(variant: Variant, tell: Callable[[DraftedRound], None]) -> FirstProposal:
            return FirstProposal([self.graft(variant, record=tell)], lambda: self.length)

        with progress_bar() as progress:
            choices = grafts.thresholds(
                self.target.model, make, CHECKPOINTS, [self.encode(prompt) for prompt in prompts],
                frozenset(self.tokenizer.eos_ids), self.length.num_draft_tokens,
                RoundCosts(target, draft, width, self.target.model.capabilities.forked_trees), progress,
            )  # fmt: skip
        return Variant(tuple(choice.checkpoint for choice in choices))


def speed(metrics: Metrics) -> float:
    return (metrics.num_output_tokens - 1) / metrics.decode_s if metrics.decode_s else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision")
    parser.add_argument("--draft-precision")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=Path, required=True, help="a prompt file, as for specport bench")
    parser.add_argument("--per-category", type=int, default=2)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--branches", type=int, nargs="+", default=[3, 2], help="with the depth, most nodes")
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--window", type=int, default=256, help="tokens that the draft reads at once")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pair = Pair(args)
    prompts = [prompt.text for prompt in read_prompts(args.prompts, args.per_category)]
    variants = dict(VARIANTS)
    if pair.kept is not None:
        variants["graft"] = pair.kept
    if args.calibrate:
        variants["graft"] = pair.calibrated(prompts[::2])
        prompts = prompts[1::2]
    methods = pair.methods(variants)
    if variants == VARIANTS:
        del methods[UNCALIBRATED]
    found: dict[str, list[tuple[list[int], Metrics]]] = {name: [] for name in methods}
    with progress_bar() as progress:
        for number, prompt in enumerate(prompts):
            for turn, (name, drafter) in enumerate(methods.items()):
                progress(f"prompt {number + 1}: {name}", (number + turn / len(methods)) / len(prompts))
                found[name].append(pair.decode(drafter, prompt))
    rows = []
    plain = [speed(metrics) for _, metrics in found["plain"]]
    for name, results in found.items():
        steps = sum(m.num_steps for _, m in results)
        rows.append({
            "method": name,
            "speedup": sum(speed(m) for _, m in results) / sum(plain),
            "ms_a_token": 1e3 * len(results) / sum(speed(m) for _, m in results),
            "acceptance": sum(m.num_output_tokens - 1 for _, m in results) / steps,
            "nodes": sum(m.num_draft_tokens for _, m in results) / steps,
            "draft_ms": sum(m.draft_s for _, m in results) / steps * 1e3,
            "verify_ms": sum(m.verify_s for _, m in results) / steps * 1e3,
            "same_text": all(a == b for (a, _), (b, _) in zip(results, found["plain"], strict=True)),
        })  # fmt: skip
    print(f"{'':<20} {'over':>6} {'ms a':>6} {'tokens':>7} {'nodes':>7} {'ms a round':>14}  same")
    heads = ("plain", 6), ("token", 6), ("a round", 7), ("a round", 7), ("draft", 6), ("verify", 7)
    print(f"{'method':<20}", *(f"{head:>{width}}" for head, width in heads), " text")
    for row in rows:
        print(
            f"{row['method']:<20} {row['speedup']:5.2f}x {row['ms_a_token']:6.1f} {row['acceptance']:7.2f}"
            f" {row['nodes']:7.1f} {row['draft_ms']:6.1f} {row['verify_ms']:7.1f}  {row['same_text']}"
        )
    print("Graft's checkpoints:", *variants["graft"].checkpoints)
    if args.out:
        about = {
            "cpu": cpu_name(),
            "python": platform.python_version(),
            **{k: str(v) for k, v in vars(args).items()},
        }
        graft = asdict(variants["graft"])
        args.out.write_text(json.dumps({"about": about, "graft": graft, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
