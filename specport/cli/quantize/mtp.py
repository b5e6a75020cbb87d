"""`specport quantize mtp`: train a head for multi-token prediction."""

from __future__ import annotations

import argparse
from pathlib import Path

from specport.cli import options
from specport.cli.quantize import inspect, trainings

EXPLAINED = """\
The head is a module for multi-token prediction (MTP), as some models ship one: a join of the target's hidden
state and of the next token, and one decoder layer of the target's kind. Embeddings and language-model head
are the target's own. The target writes the text that the head learns from, sampled at temperature 1.

losses, with the target's distribution p and the head's q:
  ce       cross-entropy of the target's tokens        kl       divergence KL(p || q)
  tv       rejected share of samples: 1 - sum min(p, q) lk       -log sum min(p, q)
  e2e-tv   rejected share of whole chains (Bebop)      lk-mix   kl first, tv as acceptance rises
A new head starts from the map to the target's next state that fits the text best.

examples:
  specport quantize mtp --distil 200000 --out head               a head for the default model
  specport quantize mtp --loss ce --out ce                       the same, by cross-entropy
  specport quantize mtp --from ce --loss e2e-tv --epochs 1 --out head
  specport run --draft head --temperature 1 "Hello."             `--draft auto` uses the one built last

The same command resumes a build that was stopped. Keep the machine idle meanwhile: times are measured.
"""
REQUEST_OPTIONS = (
    "distil_tokens", "depth", "head_tokens", "loss", "teacher_top", "start", "epochs", "learning_rate",
    "seed",
)  # fmt: skip


def add_parser(actions: options.Subparsers) -> None:
    parser = trainings.add_action(
        actions, "mtp", help="train a head for multi-token prediction, for a target without one",
        epilog=EXPLAINED,
        description="Train a head for multi-token prediction (MTP), which drafts with the target's states.",
    )  # fmt: skip
    trainings.add_target_options(
        parser, "the model to draft for: a GGUF file or Hugging Face folder", "target"
    )
    head = parser.add_argument_group("head")
    add = head.add_argument
    add(
        "--distil", dest="distil_tokens", type=int, metavar="N",
        help="tokens that the target writes as training text (default: 200000)",
    )  # fmt: skip
    add("--loss", metavar="{ce,kl,tv,e2e-tv,lk,lk-mix}", help="loss of the training (default: e2e-tv)")
    trainings.add_head_options(head)
    add("--from", dest="start", type=Path, metavar="HEAD", help="an MTP head to train further")
    add(
        "--teacher-top", type=int, metavar="K",
        help="learn from the target's K likeliest tokens at each place; 0 = from all (default: 0)",
    )  # fmt: skip
    add("--epochs", type=float, metavar="X", help="training passes over each text (default: 3.0)")
    add("--learning-rate", type=float, metavar="X", help="of AdamW, at its highest (default: 1e-4)")
    trainings.add_text_options(head, "besides generated ones; some are held out to measure")
    trainings.add_output_options(parser, "folder of the bundle; must not exist yet", trainings.MANIFEST)


def run(args: argparse.Namespace) -> int:
    from specport.quantize.mtp.build import build
    from specport.quantize.mtp.request import Request

    return trainings.train_head(args, Request, REQUEST_OPTIONS, build, inspect.show)
