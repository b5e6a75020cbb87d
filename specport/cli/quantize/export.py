"""`specport quantize export`: write a draft in the layout of another runtime."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.errors import InvalidInput
from specport.outside.places import expanded

if TYPE_CHECKING:
    from specport.progress import Progress

EXAMPLES = """\
examples:
  specport quantize export draft --to hf --out for-transformers
  specport quantize export draft --to vllm --target MODEL --out served
  specport quantize export MODEL --to vllm --out served        its own multi-token prediction
  specport quantize export MODEL --to vllm --draft ngram --out served
"""
LAYOUTS = ("genai", "hf", "vllm")
ONLY_VLLM = ("target", "draft", "tokens")


def add_parser(actions: options.Subparsers) -> None:
    parser = actions.add_parser(
        "export", help="write a bundle in the layout of another runtime", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    parser.add_argument(
        "folder", metavar="DIR", help="a draft bundle; for vllm also a target with a draft of its own"
    )
    parser.add_argument(
        "--to", required=True, metavar="{genai,hf,vllm}",
        help="openvino-genai's folder layout, a Hugging Face folder with float16 weights, or what "
        "vllm serve needs for target and draft",
    )  # fmt: skip
    parser.add_argument("--out", dest="exported", required=True, type=Path, metavar="DIR")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add = parser.add_argument_group("vllm").add_argument
    add("--target", metavar="MODEL", help="the model that DIR drafts for, as for specport run --model")
    add(
        "--draft", metavar="{ngram,suffix,mtp}",
        help="DIR is the target, which drafts so (default: mtp, where it has such weights)",
    )  # fmt: skip
    add("--tokens", type=int, metavar="N", help="draft tokens a round (default: as measured)")


def run(args: argparse.Namespace) -> int:
    if args.to not in LAYOUTS:
        raise InvalidInput(f"unknown layout {args.to!r}", f"choose one of {', '.join(LAYOUTS)}")
    given = [name for name in ONLY_VLLM if getattr(args, name, None) is not None]
    if given and args.to != "vllm":
        raise InvalidInput(f"--{given[0]} is for --to vllm", f"leave it out with --to {args.to}")
    args.exported = expanded(args.exported)
    if args.exported.exists():
        raise InvalidInput(f"{args.exported} is there already", "choose another --out")
    with terminal.progress(getattr(args, "quiet", False)) as progress:
        use = _served(args, progress) if args.to == "vllm" else _converted(args, progress)
    terminal.say(f"written: {args.exported}, for {use}")
    return 0


def _converted(args: argparse.Namespace, progress: Progress) -> str:
    """Write one of the layouts that hold the draft only; return how it is used."""
    from specport.models import bundle

    folder, out = expanded(args.folder), args.exported
    if not (folder / bundle.BUNDLE_FILE).is_file():
        raise InvalidInput(f"{folder} is not a draft bundle", "specport quantize --out DIR makes one")
    bundle.check_is_model(bundle.read(folder, thorough=True), folder)
    if args.to == "genai":
        from specport.quantize.convert import to_genai

        progress("converting the tokenizer", 0.0)
        to_genai.genai(folder, out)
        return f"openvino_genai.draft_model({str(out)!r}, ...)"
    from specport.quantize.convert.to_huggingface import to_hugging_face

    to_hugging_face(folder, out, progress)
    return f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"


def _served(args: argparse.Namespace, progress: Progress) -> str:
    """Write a target with its draft; return the command that serves them."""
    from specport.quantize.to_vllm import to_vllm

    made = to_vllm(
        args.folder, args.exported, progress=progress,
        **{name: getattr(args, name, None) for name in ONLY_VLLM},
    )  # fmt: skip
    notes = "".join(f"\n{note}" for note in made.notes)
    return f"\n  cd {shlex.quote(str(made.folder))} && {made.command}{notes}"
