"""`specport quantize layerskip`: train a model so that its own first layers draft for it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.cli.quantize import trainings

if TYPE_CHECKING:
    from specport.quantize.train.layerskip.about import About

EXPLAINED = """\
Training drops layers at random, deeper ones more often. Through the model's own head, every layer learns to
predict the tokens of the original model. The table shows the agreement of each exit with the full model.

examples:
  specport quantize layerskip --target MODEL --tokens 200000 --out DIR
  specport calibrate --model DIR --draft early-exit
  specport run --model DIR --draft early-exit

The same command resumes a training that was stopped. The result is another model, with other output: compare
its quality with the original on your own task before you replace the original.
"""
RECIPE_OPTIONS = ("dropout", "exit_scale", "curriculum", "every", "epochs", "learning_rate", "seed")


def add_parser(actions: options.Subparsers) -> None:
    parser = trainings.add_action(
        actions, "layerskip", help="train a model to exit early and draft for itself",
        epilog=EXPLAINED,
        description="Train a model on its own output, so that its first layers can draft for it.",
    )  # fmt: skip
    trainings.add_target_options(
        parser, "the model to train, as for specport run --model", "generating model"
    )
    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--epochs", type=float, metavar="X", help="training passes over each text (default: 1.0)")
    add("--learning-rate", type=float, metavar="X", help="default: 2e-4")
    add("--dropout", type=float, metavar="X", help="dropout rate of the last layer (default: 0.1)")
    add("--exit-scale", type=float, metavar="X", help="weight of the early-exit losses (default: 0.2)")
    add(
        "--curriculum", metavar="{rotational,gradual}",
        help="rotational: every 8th layer has a loss, others each step; gradual: last layer first, then more",
    )  # fmt: skip
    add("--every", type=int, metavar="N", help="layer interval of the rotational curriculum (default: 8)")
    trainings.add_model_text_options(training)
    trainings.add_output_options(parser, "output Hugging Face folder; must not exist yet")


def run(args: argparse.Namespace) -> int:
    from specport.quantize.train.layerskip.build import build
    from specport.quantize.train.layerskip.recipe import Recipe

    trainings.train_model(args, Recipe, RECIPE_OPTIONS, build, show)
    terminal.say(f"written: {args.out}; next: specport calibrate --model {args.out} --draft early-exit")
    return 0


def show(about: About, as_json: bool) -> None:
    """Print what a training changed: perplexity, and the agreement of each exit."""
    if as_json:
        terminal.write(json.dumps(asdict(about), indent=1) + "\n")
        return
    say = terminal.write
    say(f"{about.source}, trained on {about.tokens_read} tokens in {about.seconds:.0f} s\n")
    say(
        f"perplexity on its own text: {trainings.number(about.before.perplexity, 3)} to "
        f"{trainings.number(about.after.perplexity, 3)}\n\n"
    )
    say(f"{'exit':>7}{'before':>9}{'after':>9}\n")
    shares = zip(about.before.agreement, about.after.agreement, strict=True)
    for layer, (before, after) in enumerate(shares, start=1):
        whole = "  whole" if layer == len(about.before.agreement) else ""
        say(f"{layer:>7}{before:>9.1%}{after:>9.1%}{whole}\n")
