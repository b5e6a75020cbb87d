"""`specport quantize layers`: measure the importance of each decoder layer of a model."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from specport.cli import options, terminal

if TYPE_CHECKING:
    from specport.quantize.prune.importance import Importance

EXPLAINED = """\
angle      angular distance between the residual stream before and after the layer, in half turns
influence  one minus the mean cosine between the two (block influence)
without    share of the target's tokens that the draft still proposes when the layer is removed

A block is several layers in a row. The table shows the block of each size with the smallest angular distance.
"""


def add_parser(actions: options.Subparsers) -> None:
    parser = actions.add_parser(
        "layers", help="measure the importance of each layer of a model", epilog=EXPLAINED,
        description="Measure every layer of a draft on text that the target generates.",
        argument_default=argparse.SUPPRESS,  # does not overwrite options before `layers`
    )  # fmt: skip
    options.add_pair_options(parser)
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="your own prompts, as for specport bench"
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from specport.bench.prompts import read_prompts
    from specport.quantize.inputs import Inputs
    from specport.quantize.prune.importance import measure_layers

    own = [prompt.text for prompt in read_prompts(args.prompts)] if args.prompts else []
    with terminal.progress(args.quiet) as progress:
        inputs = Inputs.load(
            args.target, args.source, progress=progress, **options.given(args, options.PAIR_OPTIONS)
        )
        found = measure_layers(inputs, own, progress)
    if args.as_json:
        terminal.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        _show(found)
    return 0


def _show(found: Importance) -> None:
    say = terminal.write
    say(f"with all layers: agreement {found.agreement:.1%} on {found.num_tokens} tokens\n\n")
    say(f"{'layer':>7}{'angle':>8}{'influence':>11}{'without':>9}\n")
    for layer, (angle, influence, share) in enumerate(
        zip(found.angles, found.influences, found.agreements, strict=True)
    ):
        say(f"{layer:>7}{angle:8.3f}{influence:11.3f}{share:9.1%}\n")
    say(f"\n{'block':>7}{'angle':>8}{'':>11}{'without':>9}\n")
    for block in found.blocks:
        span = f"{block.first}-{block.first + block.size - 1}"
        say(f"{span:>7}{block.angle:8.3f}{'':>11}{block.agreement:9.1%}\n")
