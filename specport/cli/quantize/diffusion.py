"""`specport quantize diffusion`: make a block-diffusion language model from an autoregressive one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.cli.quantize import trainings

if TYPE_CHECKING:
    from specport.quantize.train.diffusion.about import About

EXPLAINED = """\
The model learns to fill in masks, block by block, on text that the target writes. The table shows how often
it fills in the text's token, by the number of masks in a block.

examples:
  specport quantize diffusion --target MODEL --tokens 200000 --out DIR
  specport quantize diffusion --target MODEL --from DIR --layers 10 --out SMALLER
  specport run --model DIR --draft SMALLER "Hello."

The same command resumes a training that was stopped. --from DIR goes on from an earlier result, with fewer
layers where --layers says so. The result is another model, with other text than the target's.
"""
RECIPE_OPTIONS = ("block", "epochs", "learning_rate", "batch_tokens", "seed")


def add_parser(actions: options.Subparsers) -> None:
    parser = trainings.add_action(
        actions, "diffusion", help="make a block-diffusion model from an autoregressive one",
        epilog=EXPLAINED,
        description="Make a model that fills in the masks of a block, from one that writes token by token.",
    )  # fmt: skip
    group = trainings.add_target_options(
        parser, "model that writes the text, as for specport run", "generating model"
    )
    group.add_argument(
        "--from", dest="start", metavar="MODEL",
        help="the model that the training begins with: one with the target's tokenizer, or a diffusion model "
        "that was made before (default: the target)",
    )  # fmt: skip
    training = parser.add_argument_group("training")
    add = training.add_argument
    add(
        "--block",
        type=int,
        metavar="N",
        help="tokens that are denoised together (default: those of --from, or 4)",
    )
    add("--layers", type=int, metavar="N", help="decoder layers to keep (default: all)")
    add("--epochs", type=float, metavar="X", help="training passes over each text (default: 2.0)")
    add("--learning-rate", type=float, metavar="X", help="default: 3e-4")
    add("--batch-tokens", type=int, metavar="N", help="tokens of a training step (default: 512)")
    trainings.add_model_text_options(training)
    trainings.add_output_options(parser, "output folder; must not exist yet")


def run(args: argparse.Namespace) -> int:
    from specport.quantize.train.diffusion.build import build
    from specport.quantize.train.diffusion.recipe import Recipe

    trainings.train_model(args, Recipe, RECIPE_OPTIONS, build, show, ("layers", "start"))
    terminal.say(f"written: {args.out}; next: specport run --model {args.out}")
    return 0


def show(about: About, as_json: bool) -> None:
    """Print what a training changed: how well masks are filled in, by their number in a block."""
    if as_json:
        terminal.write(json.dumps(asdict(about), indent=1) + "\n")
        return
    say = terminal.write
    say(
        f"{about.layers} layers of {about.start} fill in masks, trained on {about.tokens_read} tokens in "
        f"{about.seconds / 3600:.2f} h\n"
    )
    say(
        f"perplexity of {about.target}'s text, at most: {trainings.number(about.before.perplexity, 1)} to "
        f"{trainings.number(about.after.perplexity, 1)}; under {about.target}: "
        f"{about.target_perplexity:.2f}\n\n"
    )
    say(f"{'masks':>7}{'before':>9}{'after':>9}\n")
    shares = zip(about.before.accuracy, about.after.accuracy, strict=True)
    for masks, (before, after) in enumerate(shares, start=1):
        say(f"{masks:>7}{before:>9.1%}{after:>9.1%}\n")
