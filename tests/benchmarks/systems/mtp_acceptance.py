"""What a target accepts of MTP heads, by depth and by its entropy; sampled at temperature 1.

    python tests/benchmarks/systems/mtp_acceptance.py --model TARGET --head ce=DIR --head e2e-tv=DIR \\
        --prompts spec_bench.jsonl --per-category 8 --out DIR

The target answers each prompt once, sampled at temperature 1. For each head, acceptance of chains along these
answers is computed exactly from both distributions (`specport.quantize.mtp.acceptance`), for rejection
sampling (the head's tokens are drawn) and target-only acceptance (its likeliest tokens). With --run N, N of
the prompts are also answered with each head on the device, in turns, and accepted tokens and times are
counted. The first head is what the others are compared with. DIR gets report.json and acceptance.svg; a
stopped run goes on, and one for another model is refused.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from specport.backends.openvino.tables import read_tables
from specport.quantize.mtp import acceptance
from specport.quantize.mtp.request import Recipe
from specport.quantize.mtp.train import read_student
from specport.quantize.text import hidden, shards, writer

from specport.bench.prompts import read_prompts
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import Fixed
from specport.core.ports import HEAD_INPUT, DraftRequest
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.drafters.model.mtp import MtpDrafter
from specport.drafters.spec import parse
from specport.errors import SpecportError

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.resumed import claim

from specport.models import bundle
from specport.models.identity import fingerprint
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.drafts.mtp import head_of, module_of
from specport.runtime.loading import Loader
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import load_tokenizer

EDGES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)  # of bins of mean entropy, in nats


class TargetOnly(MtpDrafter):
    """Draft the head's likeliest tokens also where the target samples: accepted with p of the token."""

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return super().propose([replace(each, sampler=Sampler(SamplingParams())) for each in requests])


def answers(loader: Loader, files: Any, tokenizer: Any, asked: Sequence[str], out: Path, limit: int) -> Any:
    writer.ANSWER_TOKENS = limit
    written = shards.write_shards(
        lambda: loader.target_with(files, exact=False).model, tokenizer, out / "text", None, 0, asked, bar,
        temperature=1.0,
    )  # fmt: skip
    states = hidden.write_hidden(
        lambda: loader.target_with(files, True, hidden_layers=(HEAD_INPUT,)).model, (HEAD_INPUT,), written,
        out / "text" / "hidden", bar, whole=True,
    )  # fmt: skip
    return [t for pair in zip(written, states, strict=True) for t in hidden.with_hidden(*pair, whole=True)]


def bar(what: str, share: float) -> None:
    print(f"\r{what} {share:.0%}   ", end="", flush=True)


def run(
    loader: Loader, files: Any, tokenizer: Any, folder: str, asked: Sequence[str], depth: int, limit: int
) -> Any:
    """Return by rule the counts and seconds of each prompt, and of plain decoding beside it."""
    module = module_of(parse(folder), files, loader)
    tokens = head_of(module, loader)
    target = loader.target_with(files, True, mtp=module, mtp_tokens=tokens).model
    assert target.mtp is not None  # of a device that runs modules
    drafters = {"rejection": MtpDrafter, "target-only": TargetOnly}
    engines = {"plain": Engine(target)}
    for rule, make in drafters.items():
        drafter = make(target.mtp, target.vocab_size, tokens)
        engines[rule] = Engine(target, FirstProposal([drafter], lambda: Fixed(depth), tree=False))
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for number, prompt in enumerate(asked):
        for name, engine in engines.items():
            bar(f"{folder} {name}", number / len(asked))
            generation = Generation(
                encode(tokenizer, prompt),
                SamplingParams(temperature=1.0, seed=number),
                limit,
                tokenizer.eos_ids,
            )
            for _ in engine.run([generation]):
                pass
            found = generation.metrics
            rows[name].append(
                {"tokens": found.num_output_tokens, "drafts": found.num_drafts,
                 "accepted": found.num_accepted_tokens, "steps": found.num_steps, "decode_s": found.decode_s}
            )  # fmt: skip
    return rows


def running(rows: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plain = [_tpot(row) for row in rows["plain"]]
    for rule in acceptance.RULES:
        speed = sorted(a / _tpot(row) for a, row in zip(plain, rows[rule], strict=True) if a and _tpot(row))
        found[rule] = {
            "accepted_a_round": sum(r["accepted"] for r in rows[rule])
            / max(1, sum(r["drafts"] for r in rows[rule])),
            "decode_speed_up": statistics.geometric_mean(speed) if speed else 0.0,
            "range": [speed[0], speed[-1]] if speed else [],
        }
    return found


def _tpot(row: dict[str, float]) -> float:
    return row["decode_s"] / max(row["tokens"] - 1, 1)


def plot(path: Path, found: dict[str, Any], depth: int) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "specport"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, rule in zip(axes, acceptance.RULES, strict=True):
        for name, each in found.items():
            points = each["rules"][rule]["bins"]
            label = f"{name} ({each['rules'][rule]['slope']:+.2f})"
            axis.plot(
                [p["entropy"] for p in points], [p["accepted"] for p in points], marker="o", ms=3, label=label
            )
        axis.set_title({"rejection": "rejection sampling", "target-only": "target-only"}[rule])
        axis.set_xlabel("entropy of the target, nats")
        axis.legend(title="head (slope)", fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"accepted of {depth} tokens")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model")
    add("--head", action="append", required=True, metavar="NAME=DIR")
    add("--prompts", type=Path, required=True)
    add("--per-category", type=int)
    add("--tokens", type=int, default=128, help="of an answer, at most")
    add("--depth", type=int, default=3, help="tokens of a chain")
    add("--run", type=int, default=0, metavar="N", help="prompts that are also answered with each head")
    add("--device", default="auto")
    add("--out", type=Path, required=True)
    args = parser.parse_args()
    asked = [prompt.text for prompt in read_prompts(args.prompts, args.per_category, ())]
    loader = Loader.on(args.device)
    files = loader.files(args.model, loader.profile.precision)
    tokenizer = load_tokenizer(files.folder)
    claim(
        args.out,
        {"target": files.fingerprint, "precision": files.precision, "device": loader.profile.name,
         "prompts": asked, "tokens": args.tokens},
    )  # fmt: skip
    texts = answers(loader, files, tokenizer, asked, args.out, args.tokens)
    table, rows = read_tables(files.folder, None)
    measured, found = {}, {}
    heads = {}
    for each in args.head:
        name, _, folder = each.partition("=")
        made = bundle.read(Path(folder))
        assert made.mtp is not None, f"{folder} is no MTP head"
        heads[name] = folder, made, made.mtp
    # Of one depth for all heads, so that all have the same chains.
    deepest = max(args.depth, *(about.depth for _, _, about in heads.values()))
    for name, (folder, made, about) in heads.items():
        columns = made.head_tokens or range(len(rows))
        student = read_student(Path(folder), table, rows[[*columns]], columns, Recipe(about.loss, deepest))
        bar(f"computing {name}", 0.0)
        chains = measured[name] = acceptance.measure(student, texts, rows, columns)
        found[name] = {
            "loss": about.loss,
            "tokens_read": made.distilled.get("tokens_read"),
            "rules": {
                rule: {
                    "by_depth": [round(float(share), 4) for share in chains.by_depth(rule)],
                    "accepted": round(float(chains.lengths(rule, args.depth).mean()), 4),
                    "gain": [
                        round(x, 4)
                        for x in acceptance.gain(chains, next(iter(measured.values())), rule, args.depth)
                    ],
                    "slope": round(chains.slope(rule, args.depth), 4),
                    "bins": acceptance.bins(chains, rule, args.depth, EDGES),
                }
                for rule in acceptance.RULES
            },
        }
        if args.run:
            weights = [str(path.relative_to(folder)) for path in Path(folder).rglob("*.safetensors")]
            key = f"{fingerprint(Path(folder), [], weights)[:16]}-{args.depth}-{args.run}"
            kept = args.out / f"run-{name}-{key}.json"
            if not kept.is_file():
                some = asked[:: max(1, len(asked) // args.run)][: args.run]
                kept.write_text(
                    json.dumps(run(loader, files, tokenizer, folder, some, args.depth, args.tokens))
                )
            found[name]["running"] = running(json.loads(kept.read_text()))
    chains = next(iter(measured.values()))
    conditions = {
        "processor": cpu_name(), "device": loader.profile.name, "model": files.name,
        "precision": files.precision,
        "prompts": f"{args.prompts.name}: {len(asked)}", "answers": len(texts), "chains": len(chains.alpha),
        "depth": args.depth, "temperature": 1.0, "run": args.run,
        "entropy": np.quantile(chains.mean_entropy(args.depth), (0.25, 0.5, 0.75)).round(3).tolist(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    (args.out / "report.json").write_text(json.dumps({"about": conditions, "heads": found}, indent=1))
    plot(args.out / "acceptance.svg", found, args.depth)
    show(found)


def show(found: dict[str, Any]) -> None:
    print(f"\r{'head':10}{'rule':13}{'accepted':>9}{'gain (95 %)':>24}{'slope':>8}  by depth")
    for name, each in found.items():
        for rule, facts in each["rules"].items():
            gain, low, high = facts["gain"]
            span = f"{gain:+.3f} ({low:+.3f} to {high:+.3f})"
            depths = " ".join(f"{share:.3f}" for share in facts["by_depth"])
            print(f"{name:10}{rule:13}{facts['accepted']:9.3f}{span:>24}{facts['slope']:8.2f}  {depths}")


if __name__ == "__main__":
    try:
        main()
    except SpecportError as error:
        sys.exit(f"error: {error}")
