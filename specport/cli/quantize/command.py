"""`specport quantize`: build a draft, inspect one, or export one to other runtimes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.cli.quantize import (
    compare,
    diffusion,
    export,
    head,
    inspect,
    layers,
    layerskip,
    mtp,
    pipo,
    speech,
    trainings,
    verifier,
)
from specport.errors import InvalidInput

if TYPE_CHECKING:
    from specport.quantize.build import Built

EXAMPLES = """\
examples:
  specport quantize --out draft                           a draft cut from the default model
  specport quantize --target MODEL --from SIBLING --out draft
                                                          the number of layers with the most tokens/s
  specport quantize --target MODEL --from SIBLING --layers 16 --mlp 0.6 --distil 100000 --out draft
                                                          16 layers, and 0.6 of their feed-forward channels,
                                                          distilled on text that the target generates
  specport quantize --target MODEL --from SIBLING --layers 24 --distil 200000 --parallel 6 --out draft
                                                          all layers, trained to draft 6 tokens in one pass
  specport run --model MODEL --draft draft "Hello."       `--draft auto` uses the one built last
  specport quantize inspect draft
  specport quantize export draft --to genai --out folder  or --to hf, vllm
  specport quantize head --distil 300000 --out draft      a small head on the target's hidden states
  specport quantize mtp --distil 200000 --out draft       a head for multi-token prediction
  specport quantize layers                                measure the importance of each layer
  specport quantize compare --precision int4:128,awq      compare weight formats
  specport quantize speech --audio talks/ --out draft     a draft for Whisper, from your recordings
  specport quantize diffusion --tokens 200000 --out dir   a model that fills in masks, block by block
  specport quantize pipo --target MODEL --out DIR         a model that reads and writes pairs (lossy)
  specport quantize verifier --out verifier               a slim verifier for lossy, tiered verification

Layers are removed one by one; the first to go is the one without which the draft agrees best with the target.
The same command resumes a build that was stopped. Keep the machine idle meanwhile: times are measured.
"""
# Each module has add_parser(actions) and run(args) -> exit code, and imports nothing heavy at load.
ACTIONS: dict[str, ModuleType] = {
    "inspect": inspect,
    "export": export,
    "layers": layers,
    "compare": compare,
    "layerskip": layerskip,
    "head": head,
    "mtp": mtp,
    "speech": speech,
    "diffusion": diffusion,
    "pipo": pipo,
    "verifier": verifier,
}
BUILD_OPTIONS = (*options.PAIR_OPTIONS, "processes", "cluster")
REQUEST_OPTIONS = (
    "layers", "speed_up", "by", "mlp", "head_tokens", "distil_tokens", "loss", "epochs", "learning_rate",
    "seed", "parallel",
)  # fmt: skip


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "quantize", help="build a draft for a target: compressed, pruned, distilled", epilog=EXAMPLES,
        description="Build a draft bundle for a target and measure its speed-up on this device.",
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions (without one: build)")
    for action in ACTIONS.values():
        action.add_parser(actions)
    options.add_pair_options(parser)
    draft = parser.add_argument_group("draft")
    add = draft.add_argument
    add("--layers", type=int, metavar="N", help="decoder layers to keep (default: the fastest choice)")
    add(
        "--speed-up",
        type=float,
        metavar="X",
        help="choose the number of layers so that a draft step is X times as fast",
    )
    add(
        "--by", metavar="{agreement,angle,block,influence}",
        help="criterion for removing layers: agreement of the draft with the target, angular distance "
        "of layers or of a block, block influence (default: agreement)",
    )  # fmt: skip
    add(
        "--mlp", type=float, metavar="X",
        help="share of the feed-forward channels to keep, with --distil (default: 1.0)",
    )  # fmt: skip
    add(
        "--head-tokens", type=int, metavar="N",
        help="most frequent tokens that the head keeps; 0 = all (default: the fastest choice)",
    )  # fmt: skip
    add(
        "--distil", dest="distil_tokens", type=int, metavar="N",
        help="distil the draft on N tokens that the target generates (default: 0, no distillation)",
    )  # fmt: skip
    add(
        "--epochs", type=float, metavar="X",
        help="training passes over each text; 0 = only fit the remaining weights to the full model, in "
        "minutes (default: 3.0)",
    )  # fmt: skip
    add(
        "--parallel", type=int, metavar="K",
        help="train the draft to propose K tokens in one pass, with --distil; --from may be a draft that was "
        "built before (default: 0, one pass a token)",
    )  # fmt: skip
    add("--loss", metavar="{kl,ce,tv}", help="loss of the distillation (default: kl)")
    add("--learning-rate", type=float, metavar="X", help="learning rate of the distillation (default: 2e-5)")
    add("--processes", type=int, metavar="N", help="distil on N GPUs or machines with `accelerate launch`")
    trainings.add_text_options(
        draft, "to choose, distil and measure: the target answers each once, alternating with prompts of its "
        "own; those for the measurement are held out",
    )  # fmt: skip
    trainings.add_output_options(parser, "folder of the bundle; must not exist yet", trainings.MANIFEST)


def run(args: argparse.Namespace) -> int:
    if args.action is not None:
        return int(ACTIONS[args.action].run(args))
    if args.out is None:
        raise InvalidInput("--out is missing", "name the folder for the draft")
    from specport.quantize.build import build
    from specport.quantize.request import Request

    request = Request(prompts=trainings.own_prompts(args.prompts), **options.given(args, REQUEST_OPTIONS))
    with terminal.progress(args.quiet) as progress:
        built = build(
            args.target, args.out, request, source=args.source, progress=progress,
            **options.given(args, BUILD_OPTIONS),
        )  # fmt: skip
    if args.as_json:
        terminal.write(json.dumps(asdict(built.bundle), indent=1) + "\n")
        return 0
    _built(built)
    inspect.show(built.bundle)
    trainings.say_written(built.folder, pays=built.bundle.pays)
    return 0


def _built(built: Built) -> None:
    """Print the tables from which head and number of layers were chosen."""
    say = terminal.write
    if built.plan.heads:
        say(f"{'head':>14}{'ms':>7}{'agreement':>11}{'tokens/s':>10}\n")
        for row in built.plan.heads:
            size = str(row.size) + (" whole" if row.tokens is None else "")
            say(f"{size:>14}{1e3 * row.seconds:7.1f}{row.agreement:11.1%}{row.tokens_per_second:10.1f}\n")
    choice = built.plan.choice
    if len(choice.dropped_by_count) > 1:
        say(f"{'layers':>14}{'ms':>7}{'agreement':>11}{'tokens/s':>10}  without layer\n")
        for n, (ms, share, rate) in enumerate(
            zip(choice.seconds, choice.agreements, choice.tokens_per_second, strict=True)
        ):
            mark = "  used" if n == choice.count else ""
            without = _without(choice.dropped_by_count, n)
            say(f"{choice.num_layers - n:>14}{1e3 * ms:7.1f}{share:11.1%}{rate:10.1f}  {without}{mark}\n")


def _without(gone: Sequence[Sequence[int]], count: int) -> str:
    """Return the layer that was removed as text; all removed layers where earlier ones were put back."""
    if not count:
        return ""
    new = {*gone[count]} - {*gone[count - 1]}
    removed = [*new] if len(new) == 1 else sorted(gone[count])
    consecutive = len(removed) > 1 and removed[-1] - removed[0] == len(removed) - 1
    return f"{removed[0]}-{removed[-1]}" if consecutive else ", ".join(map(str, removed))
