"""`specport quantize layerskip`: train a model so that its own first layers draft for it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from specport.cli import options, terminal, trainings

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
BUILD_OPTIONS = ("device", "precision", "threads", "trust_remote_code", "processes", "tokens", "cluster")


def add_parser(actions: options.Subparsers) -> None:
    parser = actions.add_parser(
        "layerskip", help="train a model to exit early and draft for itself", epilog=EXPLAINED,
        description="Train a model on its own output, so that its first layers can draft for it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    group = parser.add_argument_group("model and device")
    group.add_argument("--target", metavar="MODEL", help="the model to train, as for specport run --model")
    options.add_precision(
        group, "--precision", "weight format of the generating model (default: the device's)"
    )
    options.add_device_options(group)
    training = parser.add_argument_group("training")
    options.add_cluster_option(training)
    add = training.add_argument
    add(
        "--tokens",
        type=int,
        metavar="N",
        help="tokens that the model generates as training text (default: 200000)",
    )
    add("--epochs", type=float, metavar="X", help="training passes over each text (default: 1.0)")
    add("--learning-rate", type=float, metavar="X", help="default: 2e-4")
    add("--dropout", type=float, metavar="X", help="dropout rate of the last layer (default: 0.1)")
    add("--exit-scale", type=float, metavar="X", help="weight of the early-exit losses (default: 0.2)")
    add(
        "--curriculum", metavar="{rotational,gradual}",
        help="rotational: every 8th layer has a loss, others each step; gradual: last layer first, then more",
    )  # fmt: skip
    add("--every", type=int, metavar="N", help="layer interval of the rotational curriculum (default: 8)")
    add("--processes", type=int, metavar="N", help="train on N GPUs or machines with `accelerate launch`")
    add("--seed", type=int, metavar="N", help="seed of the text and of the training (default: 0)")
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="your own prompts, as for specport bench, besides generated ones",
    )
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, metavar="DIR", help="output Hugging Face folder; must not exist yet")
    add("--json", action="store_true", dest="as_json", help="print the results as JSON instead of a table")
    add("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from specport.quantize.train.layerskip.build import build
    from specport.quantize.train.layerskip.recipe import Recipe

    trainings.train_model(args, Recipe, RECIPE_OPTIONS, build, BUILD_OPTIONS, show)
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
