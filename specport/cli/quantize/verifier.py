"""`specport quantize verifier`: search the layers that a target's slim verifier skips."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from specport.cli import options, terminal
from specport.cli.quantize import trainings
from specport.errors import InvalidInput

EXPLAINED = """\
A slim verifier is the target without some of its layers. With --verify tiered:TA,TE it judges drafts, and
the target is asked only where the slim verifier is not sure: lossy, the text may differ (VIA-SD).
Masks are judged by how far the slim verifier's law violates the target's, on text that the target writes.

examples:
  specport quantize verifier --out verifier                  for the default model
  specport run --draft ngram --verify tiered:0.6,0.3 --lossy "Hello."
                                                             uses the mask that was built last for the model

The same command resumes a search that was stopped.
"""
REQUEST_OPTIONS = ("skip", "trials", "tokens", "seed")
BUILD_OPTIONS = ("device", "precision", "threads", "trust_remote_code")


def add_parser(actions: options.Subparsers) -> None:
    parser = trainings.add_action(
        actions, "verifier", help="search the layers that a slim verifier skips (lossy verification)",
        epilog=EXPLAINED,
        description="Search the layers of a target that its slim verifier skips.",
    )  # fmt: skip
    trainings.add_target_options(parser, "the model, as for specport run --model", "target")
    add = parser.add_argument_group("search").add_argument
    add("--skip", type=float, metavar="X", help="share of the layers to skip (default: 0.45)")
    add("--trials", type=int, metavar="N", help="masks to try (default: 60)")
    add(
        "--tokens", type=int, metavar="N",
        help="tokens of the target's own text that masks are judged on (default: 288)",
    )  # fmt: skip
    add("--seed", type=int, metavar="N", help="seed of the proposals (default: 0)")
    add(
        "--prompts", type=Path, metavar="FILE",
        help="your own prompts, as for specport bench, for the target to answer (default: built-in ones)",
    )  # fmt: skip
    trainings.add_output_options(parser, "folder of the mask; must not exist yet", "the mask as JSON")


def run(args: argparse.Namespace) -> int:
    from specport.quantize.slim.build import Request, build

    if args.out is None:
        raise InvalidInput("--out is missing", "name the folder for the mask")
    asked = trainings.asked(args, REQUEST_OPTIONS, BUILD_OPTIONS)
    request = Request(prompts=trainings.own_prompts(args.prompts), **options.given(asked, REQUEST_OPTIONS))
    with terminal.progress(args.quiet) as progress:
        mask = build(args.target, args.out, request, progress=progress, **options.given(asked, BUILD_OPTIONS))
    if args.as_json:
        terminal.write(json.dumps(asdict(mask), indent=1) + "\n")
        return 0
    terminal.write(
        f"skipped: layers {', '.join(map(str, mask.skipped))} of {mask.num_layers}\n"
        f"cost {mask.cost:.3f} a token; the likeliest token is the target's at {mask.agreement:.1%}\n"
    )
    terminal.say(f"written: {args.out}; specport run --verify tiered:0.6,0.3 --lossy uses it")
    return 0
