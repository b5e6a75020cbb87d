"""Decode speed and greedy identity of drafting methods against plain decoding, in one interleaved run.

    python tests/benchmarks/decode.py --model M --draft D --prompts FILE --per-category 4 --out FILE

Each prompt is decoded by every method before the next prompt, plain first and last, so that drift of
the machine hits all alike. The prompt file has a JSON object a line: id, category, turns. Output:
a table, and JSON with every figure and its provenance.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import exp, log
from pathlib import Path

from specport.api import Drafting
from specport.core.engine import Engine, Generation
from specport.core.ports import Drafter
from specport.core.sampling import SamplingParams
from specport.drafters.cascade import Cascade
from specport.drafters.gate import WhilePaying
from specport.drafters.model import ModelDrafter
from specport.drafters.ngram import NgramDrafter
from specport.drafting import STRONG_MATCH
from specport.models.progress import progress_bar
from specport.models.source import resolve
from specport.models.tokenizer import Tokenizer, load_tokenizer
from specport.profiles import cpu_name, load_profile
from specport.registry import LoadOptions, backend_for


@dataclass(frozen=True)
class Method:
    drafter: Drafter | None
    drafting: Drafting


def methods(draft: ModelDrafter | None, cost: Mapping[int, float]) -> dict[str, Method]:
    ngram = NgramDrafter()
    table = {
        "ngram fixed 4": Method(ngram, Drafting("fixed", 4)),
        "ngram fixed 8": Method(ngram, Drafting("fixed", 8)),
        "ngram adaptive": Method(ngram, Drafting("adaptive", 4)),
        "ngram tree 4x2": Method(ngram, Drafting("fixed", 4, (2,))),
    }
    if draft:
        # As --draft 'ngram|MODEL' builds it.
        both = Cascade(NgramDrafter(min_ngram=STRONG_MATCH), WhilePaying(draft, cost), ngram)
        table |= {
            "model fixed 3": Method(draft, Drafting("fixed", 3)),
            "model heuristic": Method(draft, Drafting("heuristic")),
            "model confidence": Method(draft, Drafting("confidence")),
            "model tree 3x(2,2)": Method(draft, Drafting("fixed", 3, (2, 2))),
            "ngram|model fixed 4": Method(both, Drafting("fixed", 4)),
            "ngram|model adaptive": Method(both, Drafting("adaptive", 4)),
        }
    return table


def decode(engine: Engine, ids: list[int], tokenizer: Tokenizer, drafting: Drafting, n: int) -> Generation:
    generation = Generation(
        list(ids), engine.open(), SamplingParams(), drafting.make_policy(), n, tokenizer.eos_ids
    )
    for _ in engine.run([generation]):
        pass
    engine.close(generation.handle)
    return generation


def first_difference(a: list[int], b: list[int]) -> int | None:
    """Index of the first differing output token, or None."""
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def prompts(path: Path, per_category: int, categories: list[str]) -> list[dict[str, object]]:
    chosen: dict[str, list[dict[str, object]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        if not categories or item["category"] in categories:
            chosen.setdefault(item["category"], []).append(item)
    return [item for items in chosen.values() for item in items[:per_category]]


def summary(rows: list[dict[str, object]]) -> None:
    names = [*dict.fromkeys(row["method"] for row in rows)]
    categories = [*dict.fromkeys(row["category"] for row in rows)]
    print(
        f"\n{'decode speed-up over plain':26}", *(f"{c[:9]:>9}" for c in categories), "  geo mean  MAL  same"
    )
    for name in names:
        own = [row for row in rows if row["method"] == name]
        cells = [_geomean([r["speedup"] for r in own if r["category"] == c]) for c in categories]
        length = statistics.fmean(row["mean_acceptance_length"] for row in own)
        same = sum(row["first_difference"] is None for row in own)
        overall = _geomean([row["speedup"] for row in own])
        print(
            f"{name:26}", *(f"{c:9.2f}" for c in cells), f"  {overall:8.2f} {length:4.2f}  {same}/{len(own)}"
        )


def _geomean(values: list[float]) -> float:
    return exp(statistics.fmean(log(v) for v in values)) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--draft")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--draft-precision", default="int4")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--per-category", type=int, default=4)
    parser.add_argument("--category", action="append", default=[])
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    profile = load_profile("xeon")
    backend = backend_for(profile)
    with progress_bar() as progress:
        files = resolve(args.model, precision=args.precision, progress=progress)
        draft_files = (
            resolve(args.draft, precision=args.draft_precision, progress=progress) if args.draft else None
        )
    target = backend.load(files, LoadOptions(profile, exact=not args.fast)).model
    draft = None
    if draft_files:
        draft = ModelDrafter(
            backend.load(draft_files, LoadOptions(profile, role="draft")).model, target.vocab_size
        )
    tokenizer = load_tokenizer(files.folder)
    table = methods(draft, profile.cost)
    table = {name: table[name] for name in args.method} if args.method else table

    rows: list[dict[str, object]] = []
    items = prompts(args.prompts, args.per_category, args.category)
    plain_engine = Engine(target)
    for number, item in enumerate(items):
        ids = tokenizer.chat([{"role": "user", "content": item["turns"][0]}])  # type: ignore[index]
        if len(ids) + args.max_new_tokens >= target.max_context:
            continue
        fixed = Drafting("fixed", 0)
        plain = [decode(plain_engine, ids, tokenizer, fixed, args.max_new_tokens)]
        runs = {
            name: decode(Engine(target, m.drafter), ids, tokenizer, m.drafting, args.max_new_tokens)
            for name, m in table.items()
        }
        plain.append(decode(plain_engine, ids, tokenizer, fixed, args.max_new_tokens))
        base = statistics.fmean(p.metrics.tpot_s for p in plain)
        text = plain[0].tokens[len(ids) :]
        for name, run in {"plain": plain[1], **runs}.items():
            tpot = run.metrics.tpot_s
            speedup = base / tpot if tpot else 1.0
            rows.append(
                {
                    "id": item["id"],
                    "category": item["category"],
                    "method": name,
                    "speedup": speedup,
                    "first_difference": first_difference(run.tokens[len(ids) :], text),
                    **run.metrics.as_dict(),
                }
            )
        head = f"{number + 1}/{len(items)} {item['category']:16} {len(ids):5} prompt tokens"
        print(f"{head}, plain {base * 1e3:5.1f} ms a token", file=sys.stderr, flush=True)
    about = {
        "command": sys.argv,
        "device": cpu_name(),
        "model": files.name,
        "precision": files.precision,
        "draft": draft_files.name if draft_files else None,
        "numerics": "fast" if args.fast else "exact",
        "max_new_tokens": args.max_new_tokens,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("specport", "openvino", "numpy")},
    }
    print(json.dumps(about, indent=1))
    summary(rows)
    if args.out:
        args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
