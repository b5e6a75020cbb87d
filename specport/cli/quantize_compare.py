"""`specport quantize compare`: measure size, fidelity and speed of a model at several weight formats."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.models.precision import OPTIONS, form

if TYPE_CHECKING:
    from specport.quantize.evaluate.compare import Comparison

EXAMPLES = """\
examples:
  specport quantize compare                               the default model: fp16, int8, int4 and the device's
  specport quantize compare MODEL --precision int8 --precision int4:128,asym,awq

Options after the colon, in any order:
{options}
MB is the size of the weights on disk. The source model, computed in f32, writes answers. Perplexity and KL
(nats per token, with standard error) are measured on their tokens. `same top` is the share of tokens where
both have the same most likely token. ms/token is plain decoding; TTFT is the time to the first token after a
prompt; the spread is the interquartile range over the median. Keep the machine idle: times are measured.
"""
COMPARE_OPTIONS = ("device", "threads", "trust_remote_code")


def add_parser(actions: options.Subparsers) -> None:
    parser = actions.add_parser(
        "compare", help="compare size, fidelity and speed of int8, int4 and others",
        epilog=EXAMPLES.format(options=_options()),
        description="Convert a model at several precisions; measure size, fidelity to the source and speed.",
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
        "--prompts", type=Path, metavar="FILE",
        help="your own prompts, as for specport bench (default: eight common tasks)",
    )  # fmt: skip
    options.add_device_options(parser)
    add("--json", action="store_true", dest="as_json", help="print one JSON object instead of a table")
    add("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from specport.bench.prompts import read_prompts
    from specport.quantize.evaluate.compare import compare

    own = tuple(prompt.text for prompt in read_prompts(args.prompts)) if args.prompts else ()
    precisions = args.precisions or ([args.precision] if args.precision else [])
    with terminal.progress(args.quiet) as progress:
        found = compare(
            args.model, precisions=precisions, prompts=own, progress=progress,
            **options.given(args, COMPARE_OPTIONS),
        )  # fmt: skip
    if args.as_json:
        terminal.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        _table(found)
    return 0


def _options() -> str:
    """Return the options of `specport.models.precision`, one paragraph each."""
    lines = []
    for name, (bases, what) in OPTIONS.items():
        start = f"  {form(name):18}{', '.join(bases):12}"
        lines.append(textwrap.fill(what, 100, initial_indent=start, subsequent_indent=" " * len(start)))
    return "\n".join(lines) + "\n"


def _table(found: Comparison) -> None:
    say = terminal.write
    say(f"{found.model} on {found.device} ({found.processor})\n")
    say(
        f"read: {found.answers} answers of {found.tokens} tokens, written by the source in f32, "
        f"whose own perplexity is {found.source_perplexity:.3f}\n"
    )
    order = "interleaved" if found.interleaved else "one precision after another, since memory is limited"
    say(f"timed: {found.rounds} rounds, {order}; prompt of {found.prompt_tokens} tokens\n\n")
    width = max(len("precision"), *(len(row.precision) for row in found.rows))
    say(
        f"{'precision':{width}}{'MB':>8}{'perplexity':>12}{'KL':>9}{'+-':>8}{'same top':>10}"
        f"{'ms/token':>10}{'spread':>8}{'TTFT ms':>9}{'spread':>8}\n"
    )
    for row in found.rows:
        near = row.fidelity
        say(
            f"{row.precision:{width}}{row.size_mb:8.1f}{near.perplexity:12.3f}{near.kl:9.4f}{near.kl_error:8.4f}"
            f"{near.same_top:10.1%}{row.tpot.median:10.2f}{row.tpot.spread:8.0%}"
            f"{row.ttft.median:9.1f}{row.ttft.spread:8.0%}\n"
        )
    for row in found.rows:
        for note in row.notes:
            terminal.say(f"{row.precision}: {note}")
