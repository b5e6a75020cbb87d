"""`specport quantize pipo`: train a model to read and write pairs of tokens (lossy)."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.cli.quantize import trainings

if TYPE_CHECKING:
    from specport.quantize.pipo.about import About

EXPLAINED = """\
A pair model (PIPO) reads two tokens as one entry of its cache and writes up to two tokens a step. Prompts are
read about twice as fast, and the cache is half as large. It is LOSSY: nothing verifies the second token, and
its text is not that of the original. It is never chosen automatically.

examples:
  specport quantize pipo --target MODEL --tokens 200000 --out DIR
  specport quantize pipo --target MODEL --tokens 200000 --distil 0.5 --out DIR
  specport run --model DIR "Hello."
  specport run --model DIR --pair-threshold 0.8 "Hello."

The same command resumes a training that was stopped. Compare the quality with the original on your own task
before you use the result.
"""
RECIPE_OPTIONS = (
    "epochs", "learning_rate", "batch_tokens", "rank", "alpha", "dropout", "pad_share", "distil_epochs",
    "distil_rate", "rollout", "seed",
)  # fmt: skip


def add_parser(actions: options.Subparsers) -> None:
    parser = trainings.add_action(
        actions, "pipo", help="train a model to read and write pairs of tokens (lossy)",
        epilog=EXPLAINED,
        description="Train a model on its own output, so that it reads and writes two tokens at once. Lossy.",
    )  # fmt: skip
    trainings.add_target_options(
        parser, "the model to train, as for specport run --model", "generating model"
    )
    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--epochs", type=float, metavar="X", help="training passes over each text (default: 2.0)")
    add("--learning-rate", type=float, metavar="X", help="default: 5e-4")
    add("--batch-tokens", type=int, metavar="N", help="tokens of a training step (default: 1024)")
    add("--rank", type=int, metavar="R", help="rank of the low-rank updates (default: 64)")
    add("--alpha", type=float, metavar="X", help="their scale is alpha / rank (default: 128.0)")
    add("--dropout", type=float, metavar="X", help="dropout before them (default: 0.05)")
    add(
        "--pad-share", type=float, metavar="X",
        help="most of the pairs that are split into two single tokens (default: 0.25)",
    )  # fmt: skip
    add(
        "--distil", type=float, dest="distil_epochs", metavar="X",
        help="then distil on the pair model's own answers, with the original as the teacher: answers to each "
        "text's prompt (default: 0.0)",
    )  # fmt: skip
    add("--distil-rate", type=float, metavar="X", help="learning rate of that (default: 1e-4)")
    add("--rollout", type=int, metavar="N", help="tokens of such an answer (default: 64)")
    trainings.add_model_text_options(training)
    trainings.add_output_options(parser, "folder of the pair model; must not exist yet")


def run(args: argparse.Namespace) -> int:
    from specport.quantize.pipo.build import build
    from specport.quantize.pipo.recipe import Recipe

    trainings.train_model(args, Recipe, RECIPE_OPTIONS, build, show)
    terminal.say(f"written: {args.out} (lossy); next: specport run --model {args.out}")
    return 0


def show(about: About, as_json: bool) -> None:
    """Print how often each token of a pair is right on held-out text, stage by stage."""
    if as_json:
        terminal.write(json.dumps(asdict(about), indent=1) + "\n")
        return
    say = terminal.write
    say(f"{about.source}, trained on {about.tokens_read} tokens in {about.seconds:.0f} s")
    say(f", distilled in {about.distil_seconds:.0f} s\n" if about.distilled else "\n")
    say(f"{'held-out text':>16}{'first':>8}{'second':>8}{'kept':>8}{'right':>8}\n")
    stages = {"before": about.before, "trained": about.after, "distilled": about.distilled}
    for name, found in stages.items():
        if found is not None:
            shares = (found.first, found.second, found.kept, found.right)
            say(f"{name:>16}" + "".join(f"{share:>8.1%}" for share in shares) + "\n")
    say("first, second: the likeliest token is the original's. kept: confidence of 0.95 or more.\n")
