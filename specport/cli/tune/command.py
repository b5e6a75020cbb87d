"""`specport tune`: find what makes a model fastest on this device, and keep it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specport.cli import options, terminal
from specport.errors import InvalidInput

if TYPE_CHECKING:
    from specport.tune.options import Options
    from specport.tune.plan import Step

EXAMPLES = """\
examples:
  specport tune                                       the default model, half an hour at most
  specport tune --dry-run                             what it would do, and how long that takes
  specport tune --model TARGET --draft SIBLING --prompts mine.jsonl --budget 1h
  specport tune --model TARGET --forget               back to the defaults

Tried are weight formats, drafters without a model and their combinations, drafts: those of --draft, the one
that specport quantize built, and smaller models in the cache with the same tokenizer; early exits where the
model was trained for them; and, where the budget allows, a draft that is built on the way. Each is measured
beside plain decoding on the same prompts; the best meet in a final. `specport run` with --draft auto and
without --precision then uses the choice on this device. Another weight format is chosen only where it costs
no quality. The same command goes on where it was stopped. Keep the machine idle meanwhile.
"""
TUNE_OPTIONS = (
    "model", "device", "precision", "draft_precision", "exact", "threads", "max_new_tokens",
    "trust_remote_code",
)  # fmt: skip


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "tune", help="find what makes a model fastest here, and keep it for run", epilog=EXAMPLES,
        description="Measure weights and drafters for a model on this device, and keep the best for `run`.",
    )  # fmt: skip
    options.add_target_options(parser)
    add = parser.add_argument_group("what to try").add_argument
    add(
        "--draft", "--sibling", action="append", dest="drafts", metavar="MODEL",
        help="a model to try as a draft, as for specport run --draft; repeatable",
    )  # fmt: skip
    add(
        "--draft-precision",
        metavar="{fp32,bf16,fp16,int8,int4}",
        help="weight format of draft models (default: the device's)",
    )
    add("--no-build", action="store_true", help="build no draft, however long the budget")
    add = parser.add_argument_group("measurement").add_argument
    add("--budget", default="30m", metavar="TIME", help="most time to take: 90s, 30m, 1h (default: 30m)")
    add(
        "--prompts", type=Path, metavar="FILE",
        help="your own prompts, as for specport bench (default: eight common tasks)",
    )  # fmt: skip
    add("--per-category", type=int, metavar="N", help="at most N prompts of each category")
    add("--max-new-tokens", type=int, metavar="N", help="most tokens of each answer (default: 128)")
    add = parser.add_argument_group("instead of tuning").add_argument
    add("--dry-run", action="store_true", help="print what would be done and how long it takes")
    add("--forget", "--undo", action="store_true", help="drop what was chosen for this model on this device")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    output.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    if args.forget:
        return _forget(args)
    from specport.tune.run import look, tune

    asked = _options(args)
    with terminal.progress(args.quiet) as progress:
        if args.dry_run:
            steps = look(asked, progress)
        else:
            try:
                report = tune(asked, progress)
            except KeyboardInterrupt:
                terminal.say("specport: what was measured is kept; the same command goes on")
                raise
    if args.dry_run:
        _plan(steps, asked, args.json)
        return 0
    if args.json:
        terminal.write(json.dumps(_as_dict(asdict(report)), indent=1) + "\n")
        return 0
    from specport.cli.tune.table import show

    show(report)
    return 0


def _options(args: argparse.Namespace) -> Options:
    from specport.bench.prompts import read_prompts
    from specport.tune.budget import parse
    from specport.tune.options import Options

    if args.per_category is not None and args.prompts is None:
        raise InvalidInput("--per-category needs --prompts", "add --prompts FILE")
    prompts = read_prompts(args.prompts, args.per_category) if args.prompts else ()
    return Options(
        prompts=tuple(prompts),
        budget_s=parse(args.budget),
        drafts=tuple(args.drafts or ()),
        build=not args.no_build,
        **options.given(args, TUNE_OPTIONS),
    )


def _forget(args: argparse.Namespace) -> int:
    from specport.runtime.devices.profiles import detect, load_profile
    from specport.runtime.stored import tuned

    profile = detect() if args.device in (None, "auto") else load_profile(args.device)
    there = tuned.forget(args.model, profile.name)
    model = args.model or "the default model"
    if args.json:
        terminal.write(json.dumps({"forgotten": there}) + "\n")
    elif there:
        terminal.say(f"forgotten: what was tuned for {model} on {profile.name}")
    else:
        terminal.say(f"nothing was tuned for {model} on {profile.name}")
    return 0


def _plan(steps: Sequence[Step], asked: Options, as_json: bool) -> None:
    """Print the steps with their estimates."""
    from specport.tune.budget import written

    if as_json:
        terminal.write(json.dumps([asdict(step) for step in steps], indent=1) + "\n")
        return
    known, unknown = 0.0, False
    for step in steps:
        about = (
            "unknown"
            if step.seconds is None
            else f"{'about' if step.rough else 'at most'} {written(step.seconds)}"
        )
        if step.skip:
            about = "left out"
        else:
            known, unknown = known + (step.seconds or 0.0), unknown or step.seconds is None
        terminal.write(f"{about:18}{step.what}{f' ({step.skip})' if step.skip else ''}\n")
        if step.methods and not step.skip:
            shown = ", ".join(_named(method, step.models) for method in step.methods)
            terminal.write(f"{'':18}  {shown}\n")
    total = f"{written(known)}{' and what is unknown' if unknown else ''}"
    terminal.write(f"in all {total}; what goes beyond {written(asked.budget_s)} is cut short or left out\n")
    if unknown:
        terminal.write(
            "What is unknown gets known by specport calibrate, or by the first minute of specport tune.\n"
        )


def _named(method: str, models: Mapping[str, str]) -> str:
    for alias, model in models.items():
        method = method.replace(alias, Path(model).name)
    return method


def _as_dict(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "path": str(report["path"])}
