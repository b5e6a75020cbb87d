"""`specport quantize speech`: train a draft for a speech model on the user's recordings."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.cli.quantize import trainings
from specport.errors import InvalidInput

if TYPE_CHECKING:
    from specport.quantize.speech.about import About, Measured

EXPLAINED = """\
The draft is the target with few layers of its decoder. It shares the target's encoder, which runs once for
both. The target transcribes the recordings, and the draft learns to say the same: no text is needed. A tenth
is held out to measure. An hour of speech is a beginning; more of what you will transcribe is better.

examples:
  specport quantize speech --audio talks/ --out draft            two layers for the default model, base
  specport quantize speech --audio a.mp3 b.wav --model ./whisper-small --layers 3 --out draft
  specport transcribe --draft draft talk.mp3
  specport quantize inspect draft

The same command resumes a build that was stopped. Keep the machine idle meanwhile: times are measured.
"""
RECIPE_OPTIONS = ("epochs", "learning_rate", "seed", "parallel")
BUILD_OPTIONS = ("layers", "language", "device", "precision", "threads")
OUT = "speech-draft"


def add_parser(actions: options.Subparsers) -> None:
    parser = trainings.add_action(
        actions, "speech", help="cut and distil a draft for a speech model on your recordings",
        epilog=EXPLAINED,
        description="Train a small decoder for a Whisper model on what the model hears in your recordings.",
    )  # fmt: skip
    group = parser.add_argument_group("model and audio")
    add = group.add_argument
    add(
        "--audio", nargs="+", metavar="FILE_OR_DIR",
        help="recordings, or folders of them, of any format; needed",
    )  # fmt: skip
    add("--model", metavar="MODEL", help="base, tiny.en, a folder or a hub id (default: base)")
    add("--language", metavar="LANGUAGE", help="as in en or English (default: found in each recording)")
    options.add_precision(group, "--precision", "weight format of the model (default: the device's)")
    add("--device", metavar="DEVICE", help="a name from `specport devices` (default: auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: the runtime's choice)")
    add = parser.add_argument_group("draft").add_argument
    add(
        "--layers", type=int, metavar="N",
        help="layers of the decoder to keep: the first, the last, and others between (default: 2)",
    )  # fmt: skip
    add(
        "--parallel", type=int, metavar="K",
        help="train the draft to propose K tokens in one pass (default: token by token)",
    )  # fmt: skip
    add("--epochs", type=float, metavar="X", help="training passes over each window (default: 10.0)")
    add("--learning-rate", type=float, metavar="X", help="default: 1e-4")
    add("--seed", type=int, metavar="N", help="seed of the training and of what is held out (default: 0)")
    trainings.add_output_options(
        parser, f"new Hugging Face folder (default: {OUT})", "the results as JSON instead of lines"
    )


def run(args: argparse.Namespace) -> int:
    asked = trainings.asked(args, RECIPE_OPTIONS, BUILD_OPTIONS, ("audio", "model"))
    if not asked.audio:
        raise InvalidInput("--audio is missing", "name your recordings, or a folder of them")
    from specport.quantize.speech.build import build
    from specport.quantize.speech.recipe import Recipe

    out = args.out or Path(OUT)
    recipe = Recipe(**options.given(asked, RECIPE_OPTIONS))
    with terminal.progress(args.quiet) as progress:
        about = build(
            asked.model, asked.audio, out, recipe, progress=progress, **options.given(asked, BUILD_OPTIONS)
        )
    show(about, args.as_json)
    model = f"--model {shlex.quote(asked.model)} " if asked.model else ""
    terminal.say(f"written: {out}; next: specport transcribe {model}--draft {shlex.quote(str(out))} FILE")
    return 0


def show(about: About, as_json: bool) -> None:
    """Print what a draft for speech is, and what was measured."""
    if as_json:
        terminal.write(json.dumps(asdict(about), indent=1) + "\n")
        return
    found = about.measured
    depths = " ".join(f"{share:.0%}" for share in found.survival)
    wer = "not measured: pip install jiwer" if found.wer is None else f"{found.wer:.1%}"
    heard = f"{about.windows} windows of {about.files - about.unreadable} recordings"
    if about.unreadable:
        heard += f"; {about.unreadable} files could not be read"
    change = (
        f"{about.agreement_before:.1%} to {about.agreement:.1%} of {about.held_out} held-out windows' tokens"
    )
    if not about.trained:
        change += " (training did not raise it: the layers are the target's)"
    kept = ", ".join(map(str, about.layers))
    lines = [
        ("draft for", about.target),
        ("layers", f"{len(about.layers)} of {about.num_layers}: {kept}"),
        ("head", "all ids" if about.head is None else f"{about.head} ids"),
        ("heard", heard),
        ("agreement", f"{change}, in {about.train_seconds:.0f} s"),
        *_parallel_lines(about),
        ("accepted", f"{depths} at depth 1, 2, ... in {found.rounds} rounds"),
        ("same ids", f"{found.same} of {found.greedy} windows as the target wrote them without the draft"),
        ("WER alone", f"{wer} against the target"),
        ("step", f"draft {found.draft_ms:.1f} ms, target {found.target_ms:.1f} ms ({found.cost:.0%})"),
        *_measured_lines(found),
        (
            "by its steps",
            f"decoder {found.speed_up:.2f} times plain with {found.length} draft tokens; "
            f"{found.speed_up_whole:.2f} with the encoder's {found.encoder_ms:.0f} ms a window",
        ),
    ]
    for name, text in lines:
        terminal.write(f"{name:>12}  {text}\n")


def _measured_lines(found: Measured) -> list[tuple[str, str]]:
    if found.decoder_speed_up is None:
        return []
    return [("measured", f"decoder {found.decoder_speed_up:.2f} times plain, planned")]


def _parallel_lines(about: About) -> list[tuple[str, str]]:
    if not about.parallel:
        return []
    before, after = (
        " ".join(f"{share:.0%}" for share in shares) for shares in (about.survival_before, about.survival)
    )
    text = f"{about.parallel} tokens a pass; of held-out chains {after} survive, {before} before training"
    return [("parallel", text)]
