"""Graft's variants beside the draft model alone and token recycling alone, on one pair of models.

    python tests/benchmarks/graft_variants.py --model TARGET --draft DRAFT --prompts FILE --out results.json

Each prompt is decoded by every method in turn, so that the machine's moods fall on all alike; plain decoding
goes along, and every text must equal its. Printed are decode speed over plain decoding (tokens a second
behind the first, mean over prompts), tokens and nodes a step, and what a step drafts and verifies in ms.
With --calibrate the thresholds are set first, by recordings of every other prompt, and the rest is measured.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specport.bench.prompts import read_prompts
from specport.core.engine import Engine, Generation
from specport.core.metrics import Metrics
from specport.core.policies import Fixed
from specport.core.ports import Drafter
from specport.core.sampling import SamplingParams
from specport.drafters.graft import VARIANTS, DraftedRound, GraftDrafter, Variant, level_width
from specport.drafters.graft_thresholds import ALWAYS, RoundCosts, calibrate
from specport.drafters.levels import ModelLevels
from specport.drafters.model import ModelDrafter
from specport.drafters.recycle import RecycleDrafter
from specport.drafters.suffix import SuffixDrafter
from specport.loading import Loader
from specport.models.tokenizer import load_tokenizer
from specport.profiles import cpu_name


class Pair:
    """The two models, loaded once; every method runs on them."""

    def __init__(self, args: argparse.Namespace) -> None:
        loader = Loader.on(args.device, args.threads)
        self.files, self.target = loader.target(args.model, args.precision, exact=True)
        _, self.draft = loader.draft(args.draft, args.draft_precision, self.files, self.target)
        self.tokenizer = load_tokenizer(self.files.folder)
        self.costs = loader.costs(self.target), loader.costs(self.draft)
        self.policy = Fixed(args.depth, tuple(args.branches))
        self.budget = min(args.budget, self.policy.plan().max_nodes)
        self.window, self.num = args.window, args.tokens

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
            **{name: self.graft(variant) for name, variant in variants.items()},
            "graft, suffix first": self.graft(variants["graft"], suffix=True),
        }

    def decode(self, drafter: Drafter | None, prompt: str) -> tuple[list[int], Metrics]:
        engine = Engine(self.target.model, drafter)
        ids = list(self.tokenizer.chat([{"role": "user", "content": prompt}]))
        policy = self.policy if drafter is not None and drafter.name != "model" else Fixed(5)
        eos = frozenset(self.tokenizer.eos_ids)
        generation = Generation(ids, engine.open(), SamplingParams(), policy, self.num, eos)
        for _ in engine.run([generation]):
            pass
        engine.close(generation.handle)
        return generation.tokens[generation.num_prompt_tokens :], generation.metrics

    def record(self, variant: Variant, prompts: list[str]) -> list[DraftedRound]:
        rounds: list[DraftedRound] = []
        drafter = self.graft(variant, record=rounds.append)
        for prompt in prompts:
            self.decode(drafter, prompt)
        return rounds

    def calibrated(self, prompts: list[str]) -> Variant:
        """Graft with thresholds from these prompts, of the checkpoints that the depth comes to."""
        points = [c for c in VARIANTS["graft"].checkpoints if c.level < self.policy.num_draft_tokens]
        if not all(costs.known for costs in self.costs):
            raise SystemExit("the models were never timed: run specport calibrate with both first")
        going_on = self.record(Variant(), prompts)
        stopping = {}
        for c in points:
            always = Variant((type(c)(c.level, ALWAYS, c.share),))
            stopping[c.level] = self.record(always, prompts)
        width = level_width(self.budget, self.policy.num_draft_tokens)
        target, draft = self.costs
        return Variant(calibrate(points, going_on, stopping, RoundCosts(target, draft, width, self.budget)))


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
    parser.add_argument("--tokens", type=int, default=128)
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
    if args.calibrate:
        variants["graft"] = pair.calibrated(prompts[::2])
        prompts = prompts[1::2]
    methods = pair.methods(variants)
    found: dict[str, list[tuple[list[int], Metrics]]] = {name: [] for name in methods}
    for prompt in prompts:
        for name, drafter in methods.items():
            found[name].append(pair.decode(drafter, prompt))
    rows = []
    plain = [speed(metrics) for _, metrics in found["plain"]]
    for name, results in found.items():
        steps = sum(m.num_steps for _, m in results)
        rows.append({
            "method": name,
            "speedup": sum(speed(m) for _, m in results) / sum(plain),
            "acceptance": sum(m.num_output_tokens - 1 for _, m in results) / steps,
            "nodes": sum(m.num_draft_tokens for _, m in results) / steps,
            "draft_ms": sum(m.draft_s for _, m in results) / steps * 1e3,
            "verify_ms": sum(m.verify_s for _, m in results) / steps * 1e3,
            "same_text": all(a == b for (a, _), (b, _) in zip(results, found["plain"], strict=True)),
        })  # fmt: skip
    print(f"{'method':<20} {'speed':>6} {'tokens':>6} {'nodes':>6} {'draft':>7} {'verify':>7}  same text")
    for row in rows:
        print(
            f"{row['method']:<20} {row['speedup']:5.2f}x {row['acceptance']:6.2f} {row['nodes']:6.1f}"
            f" {row['draft_ms']:4.1f} ms {row['verify_ms']:4.1f} ms  {row['same_text']}"
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
