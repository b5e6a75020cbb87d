"""`specport quantize head`: train a draft head on a target's hidden states."""

from __future__ import annotations

import argparse

from specport.cli import options
from specport.cli.quantize import inspect, trainings

EXPLAINED = """\
The head is a small recurrent network. It reads the target's hidden states at the last token, and uses the
target's own embeddings and language-model head, so it takes a few megabytes and no prompt of its own. The
target writes the text that the head learns from. Training takes about as long as writing the text.

examples:
  specport quantize head --distil 300000 --out head              a head for the default model
  specport quantize head --target MODEL --prompts FILE --out head
  specport run --model MODEL --draft head "Hello."               `--draft auto` uses the one built last

The same command resumes a build that was stopped. Keep the machine idle meanwhile: times are measured.
"""
REQUEST_OPTIONS = (
    "distil_tokens", "layers", "inner", "blocks", "depth", "head_tokens", "loss", "epochs", "learning_rate",
    "seed",
)  # fmt: skip


def add_parser(actions: options.Subparsers) -> None:
    parser = trainings.add_action(
        actions, "head", help="train a small draft head on the target's hidden states",
        epilog=EXPLAINED,
        description="Train a recurrent draft head on the target's hidden states.",
    )  # fmt: skip
    trainings.add_target_options(parser, "the model to draft for, as for specport run --model", "target")
    head = parser.add_argument_group("head")
    add = head.add_argument
    add(
        "--distil", dest="distil_tokens", type=int, metavar="N",
        help="tokens that the target writes as training text (default: 300000)",
    )  # fmt: skip
    add(
        "--layers", type=_numbers, metavar="N,N,...",
        help="layers whose hidden states it reads (default: at a third, at two thirds, and the last)",
    )  # fmt: skip
    add("--inner", type=int, metavar="N", help="width of its feed-forward blocks (default: 1536)")
    add("--blocks", type=int, metavar="N", help="number of these blocks (default: 1)")
    trainings.add_head_options(head)
    add("--epochs", type=float, metavar="X", help="training passes over each text (default: 4.0)")
    add("--loss", metavar="{kl,tv}", help="loss of the training (default: kl)")
    add("--learning-rate", type=float, metavar="X", help="default: 5e-4")
    trainings.add_text_options(head, "besides generated ones; some are held out to measure")
    trainings.add_output_options(parser, "folder of the bundle; must not exist yet", trainings.MANIFEST)


def run(args: argparse.Namespace) -> int:
    from specport.quantize.heads.recurrent import Request, build

    return trainings.train_head(args, Request, REQUEST_OPTIONS, build, inspect.show)


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a text like "9,19,29"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 9,19,29") from None
