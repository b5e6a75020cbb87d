"""What `specport adapt` brings an agent: acceptance and speed before and after learning from its first day.

    python tests/benchmarks/agents/adapt_days.py --model MODEL --draft DRAFT --budget 10m --out results.json

Traffic is made up (`agent_days.py`). A copy of the draft answers the tasks of the first day, which are
recorded; it is adapted; both versions then answer tasks of the second day. Plain decoding, the draft alone
and n-grams with the draft take turns on each prompt, each with the old and the new draft, on one target. In
exact mode all texts must be equal. The log of this target must be empty, and is cleared in the end. For fair
speeds run `specport calibrate --model MODEL --draft DRAFT` before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_days import tasks
from specport.quantize.adapt import swapping
from specport.quantize.adapt.adapt import adapt
from specport.quantize.adapt.result import KEPT, STOPPED

import specport
from specport.calibration.methods import PLAIN, Own, Run, own, parse
from specport.core.engine import Engine
from specport.drafters.build import build_policy
from specport.drafters.spec import parse as parse_draft
from specport.models import bundle
from specport.progress import progress_bar
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.loading import Loader
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import load_tokenizer
from specport.traffic.log import Settings, TrafficLog

UNITS = {"s": 1, "m": 60, "h": 3600}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="the target, as for specport run (default: the embedded one)")
    parser.add_argument(
        "--draft", type=Path, required=True, help="a bundle for that target; it stays as it is"
    )
    parser.add_argument("--precision", help="of the target, as for the draft's build")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--first-day", type=int, default=150, help="tasks that are recorded")
    parser.add_argument("--second-day", type=int, default=30, help="tasks that are measured")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--budget", default="10m", help="of the adaptation, as in 90s, 10m or 1h")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--work", type=Path, help="folder for the copy of the draft (default: temporary)")
    parser.add_argument("--out", type=Path, help="every answer's figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report = measured(args, args.work or Path(temporary))
    for line in lines(report):
        print(line)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1), encoding="utf-8")


def measured(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Record, adapt and measure; return all figures."""
    work.mkdir(parents=True, exist_ok=True)
    draft = work / "draft"
    if not draft.exists():
        shutil.copytree(args.draft, draft)
    about = bundle.read(draft)
    log = TrafficLog(about.target_fingerprint)
    if log.files():
        raise SystemExit(f"the log {log.folder} is in use; specport adapt clear empties it")
    settings = log.settings()
    log.save(Settings(True, str(draft), about.target))
    try:
        began = time.monotonic()
        num_tokens = record(args, draft)
        recorded = {"tokens": num_tokens, "seconds": round(time.monotonic() - began), "bytes": log.size()}
        if not log.files():
            raise SystemExit("nothing was recorded: the draft was built for another precision of the target")
        log.note(on=False)
        began = time.monotonic()
        with progress_bar() as progress:
            while True:  # a budget that was estimated wrongly is gone on with
                found = adapt(
                    draft, model=args.model, budget_s=float(args.budget[:-1]) * UNITS[args.budget[-1]],
                    learning_rate=args.learning_rate, device=args.device, threads=args.threads,
                    progress=progress,
                )  # fmt: skip
                if found.state != STOPPED:
                    break
        adapted = {**found.as_dict(), "seconds": round(time.monotonic() - began)}
        # Where the new draft was refused, the old one is measured twice, which shows the noise.
        before = swapping.previous_of(draft) if found.state == KEPT else draft
        rows = compare(args, {"before": before, "after": draft})
    finally:
        log.clear()
        if settings is not None:
            log.save(settings)
        else:
            log.note(on=False)
    return {
        "about": {
            "model": about.target, "draft": str(args.draft), "processor": cpu_name(),
            "max_new_tokens": args.max_new_tokens, "first_day": args.first_day, "budget": args.budget,
            "learning_rate": args.learning_rate,
        },
        "recorded": recorded, "adapted": adapted, "summary": summary(rows), "rows": rows,
    }  # fmt: skip


def record(args: argparse.Namespace, draft: Path) -> int:
    """Answer the tasks of the first day; return the tokens of the answers."""
    options = {"precision": args.precision, "device": args.device, "threads": args.threads}
    with specport.load(args.model, draft=f"ngram|{draft}", **options) as pipeline:
        count = 0
        for number, task in enumerate(tasks(1, args.first_day)):
            result = pipeline.generate(task.text, max_new_tokens=args.max_new_tokens)
            count += result.metrics.num_output_tokens
            print(f"day 1, task {number + 1}: {count} tokens", end="\r", flush=True)
        print()
        return count


def compare(args: argparse.Namespace, drafts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Answer the tasks of the second day with every method in turn; return the figures of each answer."""
    loader = Loader.on(args.device, args.threads)
    files, target = loader.target(args.model, args.precision, True)
    tokenizer = load_tokenizer(files.folder)
    engine = Engine(target.model)
    again = f"{PLAIN}, again"  # shows the noise
    methods: dict[str, Own] = {
        name: own(parse(PLAIN), None, engine, tokenizer.eos_ids, {}) for name in (PLAIN, again)
    }
    for name, folder in drafts.items():
        found, loaded = loader.draft(str(folder), None, files, tokenizer, target)
        depth = found.files.bundle.parallel.depth if found.files.bundle and found.files.bundle.parallel else 4
        for how in (f"draft@fixed={depth}", "draft", "ngram|draft"):
            spec = parse(how)
            model = loader.draft_model(found, loaded, target)
            policy = build_policy(
                parse_draft(spec.draft), target.model, tokenizer, {"draft": model},
                drafting=spec.drafting, costs=loader.costs(target),
            )  # fmt: skip
            methods[f"{how.partition('=')[0]}, {name}"] = own(spec, policy, engine, tokenizer.eos_ids, {})
    for method in methods.values():
        method.run(encode(tokenizer, "Hello"), 8)  # warm-up
    rows = []
    for number, task in enumerate(tasks(2, args.second_day)):
        ids = encode(tokenizer, task.text)
        first = number % len(methods)  # each method is first, second, ... equally often: the machine drifts
        order = [*methods][first:] + [*methods][:first]
        runs = {name: methods[name].run(ids, args.max_new_tokens) for name in order}
        rows += [row(number, task.kind, name, run, runs[PLAIN]) for name, run in runs.items()]
        print(f"day 2, task {number + 1} of {args.second_day}", end="\r", flush=True)
    print()
    return rows


def row(number: int, kind: str, name: str, run: Run, plain: Run) -> dict[str, Any]:
    """Return the figures of an answer."""
    counts = {key: run.metrics[key] for key in ("num_drafts", "num_draft_tokens", "num_accepted_tokens")}
    return {
        "task": number, "kind": kind, "method": name, "tokens": len(run.tokens),
        "ms_per_token": round(1e3 * (run.total_s - run.ttft_s) / max(len(run.tokens) - 1, 1), 3),
        "total_s": round(run.total_s, 4), "same_text": run.tokens == plain.tokens, **counts,
    }  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return by method: tokens per step, and speed-ups over plain decoding with their quartiles."""
    plain = {row["task"]: row for row in rows if row["method"] == PLAIN}
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        speed_ups = [plain[row["task"]]["ms_per_token"] / max(row["ms_per_token"], 1e-9) for row in mine]
        whole = [plain[row["task"]]["total_s"] / row["total_s"] for row in mine]
        drafts = sum(row["num_drafts"] for row in mine)
        accepted = sum(row["num_accepted_tokens"] for row in mine)
        quartiles = statistics.quantiles(speed_ups, n=4) if len(speed_ups) > 1 else [*speed_ups * 3]
        found[name] = {
            "tokens_per_drafted_step": round(1 + accepted / drafts, 3) if drafts else 1.0,
            "decode": round(statistics.geometric_mean(speed_ups), 3),
            "decode_quartiles": [round(q, 3) for q in quartiles],
            "end_to_end": round(statistics.geometric_mean(whole), 3),
            "same_text": f"{sum(bool(row['same_text']) for row in mine)}/{len(mine)}",
        }
    return found


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return the report for people."""
    adapted, recorded = report["adapted"], report["recorded"]
    found = [
        f"day 1: {recorded['tokens']} tokens in {recorded['seconds']} s, a log of {recorded['bytes']} bytes",
        f"adapting: {adapted['state']} after {adapted['seconds']} s, "
        f"{adapted['own_tokens']} own and {adapted['old_tokens']} old tokens",
    ]
    if judged := adapted["judgement"]:
        for name in ("own", "old"):
            before, after = (judged[f"{name}_{when}"]["tokens_per_step"] for when in ("before", "after"))
            found.append(f"{name} held-out text: {before:.2f} to {after:.2f} tokens a step")
    found.append("| day 2 | tokens a step | decode | quartiles | end to end | same text |")
    found.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, row in report["summary"].items():
        low, _, high = row["decode_quartiles"]
        found.append(
            f"| `{name}` | {row['tokens_per_drafted_step']:.2f} | {row['decode']:.2f} "
            f"| {low:.2f} to {high:.2f} | {row['end_to_end']:.2f} | {row['same_text']} |"
        )
    return found


if __name__ == "__main__":
    main()
