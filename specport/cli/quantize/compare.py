"""`specport quantize compare`: measure size, fidelity or acceptance, and step costs of weight formats."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.models.precision import OPTIONS, form

if TYPE_CHECKING:
    from specport.quantize.evaluate.compare import Comparison
    from specport.quantize.evaluate.compare_drafts import DraftComparison
    from specport.quantize.evaluate.step_times import Times

EXAMPLES = """\
examples:
  specport quantize compare                               the default model: fp16, int8, int4 and the device's
  specport quantize compare MODEL --precision int4 --precision int4:128,awq --baseline int4
  specport quantize compare DRAFT --target TARGET --precision int4 --precision int4:channel
  specport quantize compare MODEL --precision int4:channel --dynamic-group fit --dynamic-group row

Options after the colon, in any order:
{options}
MB is the size of the weights on disk. act group is how many activations share a scale (dynamic quantisation);
by default it fits the weights. T(n) is the time of a step of n new tokens, ms/token that of plain decoding,
prompt/s the tokens of a prompt read per second; spread is the largest interquartile range over its median.
All formats are timed in turns where memory allows. Keep the machine idle.

A target: the source model, computed in f32, writes answers. Perplexity and KL (nats per token, with standard
error) are measured on their tokens; `same top` is the share of tokens where both have the same
most likely token. Ranked by the cost of steps of 1 to 8 tokens (1 = the baseline's); formats whose KL exceeds
the baseline's by more than a tenth stand behind (-).

A draft (--target): the target answers prompts, the draft guesses 8 tokens a round. survival is the share of
rounds in which its tokens of depth 1, 2, ... were all accepted; speed-up follows from that and the step times
at the best fixed number of draft tokens. Ranked by it.
"""
COMPARE_OPTIONS = ("dynamic_groups", "context", "rounds", "exact", "device", "threads", "trust_remote_code")


def add_parser(actions: options.Subparsers) -> None:
    parser = actions.add_parser(
        "compare", help="compare size, fidelity and step costs of int8, int4:128 and others",
        epilog=EXAMPLES.format(options=_options()),
        description="Convert a model to several weight formats; measure size, fidelity to the source "
        "(or acceptance as a draft) and step costs, and rank them.",
        argument_default=argparse.SUPPRESS,  # does not overwrite options before `compare`
    )  # fmt: skip
    add = parser.add_argument
    add("model", nargs="?", default=None, metavar="MODEL", help="model, as for specport run --model")
    add(
        "--precision", action="append", dest="precisions", default=None,
        metavar="{fp16,int8,int4}[:OPTION,...]",
        help="weight format to compare; repeatable (default: fp16, int8, int4 and the device's own)",
    )  # fmt: skip
    add(
        "--baseline", default=None, metavar="PRECISION",
        help="format whose quality is to be kept (default: the device's, else the first that is compared)",
    )  # fmt: skip
    add("--target", metavar="MODEL", help="compare MODEL as a draft for this target")
    add(
        "--target-precision", default=None, metavar="PRECISION",
        help="weight format of the target (default: the device's)",
    )  # fmt: skip
    add(
        "--dynamic-group", action="append", dest="dynamic_groups", default=None,
        metavar="{fit,row,N}",
        help="activations that share a scale; repeatable; row = the narrowest whole row (default: fit)",
    )  # fmt: skip
    add(
        "--context", type=int, default=None, metavar="N",
        help="tokens in the cache before a timed step (default: 256)",
    )  # fmt: skip
    add("--rounds", type=int, default=None, metavar="N", help="rounds of the timing (default: 7)")
    add(
        "--fast", action="store_false", dest="exact", default=None,
        help="measure targets as specport run --fast runs them (default: exact mode)",
    )  # fmt: skip
    add(
        "--prompts", type=Path, metavar="FILE",
        help="your own prompts, as for specport bench (default: eight common tasks)",
    )  # fmt: skip
    options.add_device_options(parser)
    add("--json", action="store_true", dest="as_json", help="print one JSON object instead of a table")
    add("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from specport.bench.prompts import read_prompts
    from specport.errors import InvalidInput
    from specport.quantize.evaluate.compare import compare
    from specport.quantize.evaluate.compare_drafts import compare_drafts

    own = tuple(prompt.text for prompt in read_prompts(args.prompts)) if args.prompts else ()
    precisions = args.precisions or ([args.precision] if args.precision else [])
    given = options.given(args, COMPARE_OPTIONS)
    target = args.target
    if target is None and args.target_precision:
        raise InvalidInput("--target-precision needs --target", "name the target that the draft is for")
    if target is not None and args.baseline:
        raise InvalidInput("--baseline is for targets", "drafts are ranked by their speed-up")
    with terminal.progress(args.quiet) as progress:
        if target is None:
            found: Comparison | DraftComparison = compare(
                args.model,
                precisions=precisions,
                baseline=args.baseline,
                prompts=own,
                progress=progress,
                **given,
            )
        else:
            found = compare_drafts(
                args.model, target, precisions=precisions, target_precision=args.target_precision,
                prompts=own, progress=progress, **given,
            )  # fmt: skip
    if args.as_json:
        terminal.write(json.dumps(asdict(found), indent=1) + "\n")
    elif target is None:
        _targets(found)  # type: ignore[arg-type]
    else:
        _drafts(found)  # type: ignore[arg-type]
    return 0


def _options() -> str:
    """Return the options of `specport.models.precision`, one paragraph each."""
    lines = []
    for name, (bases, what) in OPTIONS.items():
        start = f"  {form(name):18}{', '.join(bases):12}"
        lines.append(textwrap.fill(what, 100, initial_indent=start, subsequent_indent=" " * len(start)))
    return "\n".join(lines) + "\n"


def _targets(found: Comparison) -> None:
    say = terminal.write
    say(f"{found.model} on {found.device} ({found.processor})\n")
    say(
        f"read: {found.answers} answers of {found.tokens} tokens, written by the source in f32, "
        f"whose own perplexity is {found.source_perplexity:.3f}\n"
    )
    say(_timed(found) + "\n\n")
    rows = sorted(found.rows, key=lambda row: row.place)
    width = _width([row.precision for row in rows])
    say(f"{'precision':{width}}{'act group':>10}{'MB':>8}{'perplexity':>12}")
    say(f"{'KL':>9}{'+-':>8}{'same top':>10}\n")
    for row in rows:
        near = row.fidelity
        say(
            f"{row.precision:{width}}{_group(row.dynamic_group):>10}{row.size_mb:8.1f}{near.perplexity:12.3f}"
            f"{near.kl:9.4f}{near.kl_error:8.4f}{near.same_top:10.1%}\n"
        )
    header = "".join(f"{f'T({n})':>8}" for n in rows[0].steps)
    say(f"\n{'rank':6}{'precision':{width}}{'act group':>10}{header}{'ms/token':>10}{'prompt/s':>10}")
    say(f"{'spread':>8}{'cost':>7}\n")
    for row in rows:
        place = str(row.place) if row.keeps_quality else "-"
        say(
            f"{place:6}{row.precision:{width}}{_group(row.dynamic_group):>10}{_steps(row.steps)}"
            f"{row.tpot.median:10.2f}{row.prompt_rate:10.1f}"
            f"{_spread([row.tpot, row.ttft, *row.steps.values()]):8.0%}{row.cost:7.3f}\n"
        )
    best = rows[0]
    say(
        f"\nbest: {best.precision}; its steps cost {best.cost:.3f} of {found.baseline}'s "
        f"at KL {best.fidelity.kl:.4f}\n"
    )
    for row in rows:
        for note in row.notes:
            terminal.say(f"{row.precision}: {note}")


def _drafts(found: DraftComparison) -> None:
    say = terminal.write
    say(f"{found.model} as a draft for {found.target} ({found.target_precision}) on {found.device}")
    say(f" ({found.processor})\n")
    say(f"drafted: 8 tokens a round, {found.prompts} prompts\n")
    say(_timed(found) + "\n\n")
    rows = sorted(found.rows, key=lambda row: row.place)
    width = _width([*(row.precision for row in rows), "(target)"])
    header = "".join(f"{f'T({n})':>8}" for n in found.target_steps)
    say(f"{'rank':6}{'precision':{width}}{'act group':>10}{'MB':>8}{header}{'prompt/s':>10}{'spread':>8}")
    say(f"{'speed-up':>10}{'drafts':>8}  survival by depth\n")
    for row in rows:
        survival = " ".join(f"{share:.2f}" for share in row.survival)
        say(
            f"{row.place!s:6}{row.precision:{width}}{_group(row.dynamic_group):>10}{row.size_mb:8.1f}"
            f"{_steps(row.steps)}{row.prompt_rate:10.1f}{_spread([*row.steps.values()]):8.0%}"
            f"{row.speed_up:10.3f}{row.length:8}  {survival}\n"
        )
    say(f"{'':6}{'(target)':{width}}{'':18}{_steps(found.target_steps)}\n")


def _timed(found: Comparison | DraftComparison) -> str:
    order = "interleaved" if found.interleaved else "one format after another, since memory is limited"
    return (
        f"timed: {found.rounds} rounds, {order}; prompt of {found.prompt_tokens} tokens, "
        f"steps behind {found.context} tokens, ms" + ", fast mode" * (not found.exact)
    )


def _width(names: Sequence[str]) -> int:
    return max(len("precision"), *map(len, names))


def _group(group: int | None) -> str:
    return "-" if group is None else str(group)


def _steps(steps: Mapping[int, Times]) -> str:
    return "".join(f"{times.median:8.2f}" for times in steps.values())


def _spread(times: Sequence[Times]) -> float:
    return max(each.spread for each in times)
