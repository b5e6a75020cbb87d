"""What the commands share that train: their options, the user's prompts, the run, and its result."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specport.cli import options, terminal
from specport.errors import InvalidInput

# What --json prints, in its help.
MANIFEST = "the manifest as JSON instead of a table"
RESULTS = "the results as JSON instead of a table"

# Options of a build that reach it as they are: of a head, and of a whole model.
HEAD_OPTIONS = ("device", "precision", "threads", "trust_remote_code", "cluster")
MODEL_OPTIONS = (*HEAD_OPTIONS, "processes", "tokens")


def add_action(
    actions: options.Subparsers, name: str, *, help: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Add an action of `quantize`, and return its parser.

    Options that are not given are no attributes: they would overwrite those before the action.
    """
    return actions.add_parser(
        name, help=help, description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
    )  # fmt: skip


def add_head_options(group: argparse._ActionsContainer) -> None:
    """Add what a trained head can draft."""
    add = group.add_argument
    add("--depth", type=int, metavar="N", help="tokens it learns to draft in a row (default: 5)")
    add(
        "--head-tokens", type=int, metavar="N",
        help="most frequent tokens that it can draft; 0 = all (default: 8192)",
    )  # fmt: skip


def add_target_options(parser: argparse.ArgumentParser, target: str, role: str) -> argparse._ArgumentGroup:
    """Add the model that writes the text, and its device; return the group of these options.

    target: the help of --target. role: what the model is called in the help of --precision.
    """
    group = parser.add_argument_group("model and device")
    group.add_argument("--target", metavar="MODEL", help=target)
    options.add_precision(group, "--precision", f"weight format of the {role} (default: the device's)")
    options.add_device_options(group)
    return group


def add_text_options(group: argparse._ActionsContainer, prompts: str) -> None:
    """Add what text is written to learn from, and where. prompts: what the user's own prompts are for."""
    options.add_cluster_option(group)
    add = group.add_argument
    add("--seed", type=int, metavar="N", help="seed of the text and of the training (default: 0)")
    add(
        "--prompts", type=Path, metavar="FILE", help=f"your own prompts, as for specport bench, {prompts}"
    )  # fmt: skip


def add_model_text_options(group: argparse._ActionsContainer) -> None:
    """Add the options of text, and the processes, of commands that train a whole model."""
    group.add_argument(
        "--tokens", type=int, metavar="N",
        help="tokens that the model generates as training text (default: 200000)",
    )  # fmt: skip
    group.add_argument(
        "--processes", type=int, metavar="N", help="train on N GPUs or machines with `accelerate launch`"
    )
    add_text_options(group, "besides generated ones")


def add_output_options(parser: argparse.ArgumentParser, out: str, shown: str = RESULTS) -> None:
    """Add where the result goes. out: the help of --out. shown: what --json prints."""
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, metavar="DIR", help=out)
    add("--json", action="store_true", dest="as_json", help=f"print {shown}")
    add("--quiet", action="store_true", help="no progress bar")


def asked(args: argparse.Namespace, *names: Sequence[str]) -> argparse.Namespace:
    """Return the arguments with None for each option of `names` that is not given.

    Such an option is no attribute, unless `quantize` has an option of that name.
    """
    return argparse.Namespace(**dict.fromkeys(name for some in names for name in some) | vars(args))


def own_prompts(path: Path | None) -> tuple[str, ...]:
    """Return the turns of the user's prompt file; () = there is none."""
    from specport.bench.prompts import read_prompts

    return tuple(prompt.text for prompt in read_prompts(path, None, ())) if path else ()


def train_model(
    args: argparse.Namespace,
    recipe: Callable[..., Any],
    recipe_options: tuple[str, ...],
    build: Callable[..., Any],
    show: Callable[[Any, bool], None],
    more_options: tuple[str, ...] = (),
) -> None:
    """Train a whole model on text that its target writes, and show the record. Raises SpecportError.

    more_options: of `build`, besides MODEL_OPTIONS.
    """
    if args.out is None:
        raise InvalidInput("--out is missing", "name the folder for the model")
    build_options = (*MODEL_OPTIONS, *more_options)
    found = asked(args, recipe_options, build_options)
    made = recipe(**options.given(found, recipe_options))
    own = own_prompts(args.prompts)
    given = {"tokens": 200_000, **options.given(found, build_options)}
    with terminal.progress(args.quiet) as progress:
        about = build(args.target, args.out, made, prompts=own, progress=progress, **given)
    show(about, args.as_json)


def train_head(
    args: argparse.Namespace,
    request: Callable[..., Any],
    request_options: tuple[str, ...],
    build: Callable[..., Any],
    show: Callable[[Any], None],
) -> int:
    """Train a head that drafts for a target, and show its manifest. Raises SpecportError."""
    if args.out is None:
        raise InvalidInput("--out is missing", "name the folder for the head")
    found = asked(args, request_options, HEAD_OPTIONS)
    made = request(prompts=own_prompts(args.prompts), **options.given(found, request_options))
    with terminal.progress(args.quiet) as progress:
        built = build(args.target, args.out, made, progress=progress, **options.given(found, HEAD_OPTIONS))
    if args.as_json:
        terminal.write(json.dumps(asdict(built), indent=1) + "\n")
        return 0
    show(built)
    say_written(args.out, pays=built.pays)
    return 0


def say_written(folder: Path, *, pays: bool) -> None:
    """Say where a draft is, and whether it is used without being named."""
    used = "specport run --draft auto uses it"
    slow = "it is slower than plain decoding here, so --draft auto does not use it"
    terminal.say(f"written: {folder}; {used if pays else slow}")


def number(value: float | None, digits: int) -> str:
    """Return a measured number for a table; None where training diverged."""
    return "none (it diverged)" if value is None else f"{value:.{digits}f}"
