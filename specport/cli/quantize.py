"""`specport quantize`: build a draft that is worth its cost, look at one, hand one to other runtimes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specport.cli import options, quantize_compare, quantize_layers, quantize_layerskip, terminal
from specport.errors import InvalidInput

if TYPE_CHECKING:
    from specport.models.bundle import Bundle
    from specport.quantize.build import Built

EXAMPLES = """\
examples:
  specport quantize --out draft                           a draft cut from the default model itself
  specport quantize --target MODEL --from SIBLING --out draft
                                                          as many layers as make the most tokens a second
  specport quantize --target MODEL --from SIBLING --layers 16 --mlp 0.6 --distil 100000 --out draft
                                                          16 layers, and 0.6 of their feed-forward channels,
                                                          healed on text that the target writes
  specport run --model MODEL --draft draft "Hello."       `--draft auto` finds the last one by itself
  specport quantize inspect draft
  specport quantize export draft --to genai --out folder  or --to hf
  specport quantize layers                                what each layer is worth
  specport quantize compare --precision int4:asym,awq     what ways to store the weights cost

Layers go one by one, those first without which the draft still agrees best with the target. A build that was
stopped goes on with the same command. Let the machine do nothing else meanwhile: times are measured.
"""
BUILD_OPTIONS = (*options.PAIR_OPTIONS, "processes")
REQUEST_OPTIONS = (
    "layers", "speed_up", "by", "mlp", "head_tokens", "distil_tokens", "loss", "epochs", "learning_rate",
    "seed",
)  # fmt: skip


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "quantize", help="build a draft for a target: compressed, pruned, trimmed, healed", epilog=EXAMPLES,
        description="Build a draft bundle for a target, and measure what it is worth on this device.",
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions (without one: build)")
    inspect = actions.add_parser(
        "inspect", help="what a bundle, or a model trained by layerskip, is and what was measured of it"
    )
    inspect.add_argument("folder", type=Path, metavar="DIR")
    inspect.add_argument("--json", action="store_true", help="the manifest as JSON")
    export = actions.add_parser("export", help="write a bundle in another runtime's layout")
    export.add_argument("folder", type=Path, metavar="DIR")
    export.add_argument(
        "--to", required=True, metavar="{genai,hf}",
        help="openvino-genai's folder layout, or a Hugging Face folder with float16 weights",
    )  # fmt: skip
    export.add_argument("--out", dest="exported", required=True, type=Path, metavar="DIR")
    export.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help="no progress bar")
    quantize_layers.add_parser(actions)
    quantize_compare.add_parser(actions)
    quantize_layerskip.add_parser(actions)
    options.add_pair_options(parser)
    add = parser.add_argument_group("draft").add_argument
    add("--layers", type=int, metavar="N", help="decoder layers to keep (default: what pays best)")
    add("--speed-up", type=float, metavar="X", help="as many layers as make a draft step X times as fast")
    add(
        "--by", metavar="{agreement,angle,block,influence}",
        help="what tells which layers go: how well the draft still agrees with the target, angular distance "
        "of layers or of a block of them, block influence (default: agreement)",
    )  # fmt: skip
    add(
        "--mlp", type=float, metavar="X",
        help="share of the feed-forward channels to keep, with --distil (default: 1.0)",
    )  # fmt: skip
    add(
        "--head-tokens", type=int, metavar="N",
        help="commonest tokens that the head keeps; 0 = all (default: what pays best)",
    )  # fmt: skip
    add(
        "--distil", dest="distil_tokens", type=int, metavar="N",
        help="heal the draft on N tokens that the target writes (default: 0, not at all)",
    )  # fmt: skip
    add(
        "--epochs", type=float, metavar="X",
        help="times that each text is read in training; 0 = fit what stays to the whole model, in "
        "minutes, and train nothing (default: 3.0)",
    )  # fmt: skip
    add("--loss", metavar="{kl,ce,tv}", help="what healing minimises (default: kl)")
    add("--learning-rate", type=float, metavar="X", help="of healing (default: 2e-5)")
    add("--processes", type=int, metavar="N", help="heal on N GPUs or machines with `accelerate launch`")
    add("--seed", type=int, metavar="N", help="of the text and of the training (default: 0)")
    add(
        "--prompts", type=Path, metavar="FILE",
        help="your own prompts, as for specport bench, to choose, heal and measure by: the target answers "
        "each once, those that it is measured on apart, in turns with prompts that it makes up",
    )  # fmt: skip
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, metavar="DIR", help="folder of the bundle; it must not be there yet")
    add("--json", action="store_true", dest="as_json", help="the manifest as JSON instead of a table")
    add("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    if args.action is not None:
        return ACTIONS[args.action](args)
    if args.out is None:
        raise InvalidInput("--out is missing", "name the folder that the draft is to be written to")
    from specport.bench.prompts import read_prompts
    from specport.quantize.build import Request, build

    own = tuple(p.text for p in read_prompts(args.prompts, None, ())) if args.prompts else ()
    request = Request(prompts=own, **options.given(args, REQUEST_OPTIONS))
    with terminal.progress(args.quiet) as progress:
        built = build(
            args.target, args.out, request, source=args.source, progress=progress,
            **options.given(args, BUILD_OPTIONS),
        )  # fmt: skip
    if args.as_json:
        terminal.write(json.dumps(asdict(built.bundle), indent=1) + "\n")
        return 0
    _built(built)
    _show(built.bundle)
    found = "specport run --draft auto finds it"
    slow = "it is slower than plain decoding here, so that --draft auto does not use it"
    terminal.say(f"written: {built.folder}; {found if built.bundle.pays else slow}")
    return 0


def _built(built: Built) -> None:
    say = terminal.write
    if built.plan.heads:
        say(f"{'head':>14}{'ms':>7}{'agreement':>11}{'tokens/s':>10}\n")
        for head in built.plan.heads:
            size = str(head.size) + (" whole" if head.tokens is None else "")
            say(f"{size:>14}{1e3 * head.seconds:7.1f}{head.agreement:11.1%}{head.rate:10.1f}\n")
    choice = built.plan.choice
    if len(choice.gone) > 1:
        say(f"{'layers':>14}{'ms':>7}{'agreement':>11}{'tokens/s':>10}  without layer\n")
        for n, (ms, share, rate) in enumerate(
            zip(choice.seconds, choice.agreements, choice.rates, strict=True)
        ):
            mark = "  used" if n == choice.count else ""
            without = _without(choice.gone, n)
            say(f"{choice.num_layers - n:>14}{1e3 * ms:7.1f}{share:11.1%}{rate:10.1f}  {without}{mark}\n")


def _without(gone: Sequence[Sequence[int]], count: int) -> str:
    """The layer that goes as well, or, where others come back for it, all that go."""
    if not count:
        return ""
    new = {*gone[count]} - {*gone[count - 1]}
    layers = [*new] if len(new) == 1 else sorted(gone[count])
    consecutive = len(layers) > 1 and layers[-1] - layers[0] == len(layers) - 1
    return f"{layers[0]}-{layers[-1]}" if consecutive else ", ".join(map(str, layers))


def _inspect(args: argparse.Namespace) -> int:
    from specport.models import bundle
    from specport.quantize.train.layerskip import build as layerskip_build

    folder, as_json = args.folder, args.json
    if (folder / layerskip_build.ABOUT).is_file():
        quantize_layerskip.show(layerskip_build.read(folder), as_json)
        return 0
    if not (folder / bundle.BUNDLE_FILE).is_file():
        raise InvalidInput(f"{folder} is no draft bundle", "specport quantize --out DIR makes one")
    found = bundle.read(folder, thorough=True)
    if as_json:
        terminal.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        _show(found)
    return 0


def _show(bundle: Bundle) -> None:
    m: dict[str, Any] = dict(bundle.measured)
    d = bundle.distilled
    head = "whole" if bundle.head is None else f"cut to {sum(b - a for a, b in bundle.head)} tokens"
    lines = [
        ("draft for", bundle.target),
        ("made from", f"{bundle.source}, {bundle.precision}"),
        ("layers", f"{len(bundle.layers)} of {bundle.num_layers}: {', '.join(map(str, bundle.layers))}"),
        ("head", head),
    ]
    if d and d["mlp_channels"]:
        lines.append(("channels", "{} of {} of each feed-forward part".format(*d["mlp_channels"])))
    if d:
        change = f"{d['agreement_before']:.1%} to {d['agreement']:.1%}"
        done = f"on {d['tokens_read']} tokens: agreement {change}"
        lines.append(
            ("healed", done if d.get("trained", True) else f"fitted only: agreement {d['agreement']:.1%}")
        )
    if m:
        by_depth = ", ".join(f"{share:.2f}" for share in m["acceptance_by_depth"])
        length = f"mean acceptance length {m['mean_acceptance_length']:.2f}"
        low, high = m["speed_up_range"]
        cost = f"{m['cost']:.2f} of the target's {m['target_ms']:.1f} ms"
        lines += [
            ("draft step", f"{m['draft_ms']:.1f} ms, {cost}"),
            ("acceptance", f"{by_depth} at depth 1, 2, ...; {length}"),
            ("decode", f"{m['speed_up']:.2f} times plain decoding ({low:.2f} to {high:.2f}), planned"),
            ("same text", f"{m['same_text']}/{m['prompts']} prompts, {m['max_new_tokens']} tokens each"),
            ("measured", f"{m['date']} on {m['device']}, {m['processor']}"),
        ]
    for name, text in lines:
        terminal.write(f"{name:>11}  {text}\n")


def _export(args: argparse.Namespace) -> int:
    from specport.models import bundle

    folder, to, out = args.folder, args.to, args.exported
    if to not in ("genai", "hf"):
        raise InvalidInput(f"unknown layout {to!r}", "choose genai or hf")
    if out.exists():
        raise InvalidInput(f"{out} is there already", "choose another --out")
    bundle.read(folder, thorough=True)
    with terminal.progress(args.quiet) as progress:
        if to == "genai":
            from specport.quantize.convert import to_genai

            progress("converting the tokenizer", 0.0)
            to_genai.genai(folder, out)
            use = f"openvino_genai.draft_model({str(out)!r}, ...)"
        else:
            from specport.quantize.convert.to_huggingface import to_hugging_face

            to_hugging_face(folder, out, progress)
            use = f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"
    terminal.say(f"written: {out}, for {use}")
    return 0


ACTIONS = {
    "inspect": _inspect,
    "export": _export,
    "layers": quantize_layers.run,
    "compare": quantize_compare.run,
    "layerskip": quantize_layerskip.run,
}
