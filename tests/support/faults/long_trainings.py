"""The long commands that train, search, export and compare, on tiny models. See `long_commands`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.faults.kills import Command, digest

ON = ("--device", "xeon", "--threads", "1")
_TEXT = ("--target", "target", "--quiet")
_HEAD = (*_TEXT, "--distil", "60", "--depth", "2", "--head-tokens", "100", "--epochs", "2", *ON)
_SMALLER = ("-m", "support.faults.smaller")
_RL = Path(__file__).parents[3] / "examples" / "rl_rollouts.py"


def _weights(name: str) -> Callable[[Path, str], Any]:
    """Return what reads the names and hashes of the files of weights in a folder that a command made."""

    def read(place: Path, out: str) -> list[tuple[str, str]]:
        made = place / name
        kinds = (".safetensors", ".bin", ".npz")
        found = [(str(p.relative_to(made)), digest(p)) for p in made.rglob("*") if p.suffix in kinds]
        assert found and not [*place.glob(f"{name}.partial")]
        return sorted(found)

    return read


def _bundle(name: str) -> Callable[[Path, str], Any]:
    """The same, of a bundle that is whole."""

    def read(place: Path, out: str) -> Any:
        from specport.models import bundle

        bundle.read(place / name, thorough=True)
        return _weights(name)(place, out)

    return read


def _mask(place: Path, out: str) -> tuple[int, ...]:
    from specport.models.kinds import layer_mask

    return tuple(layer_mask.read(place / "verifier").skipped)


def _formats(place: Path, out: str) -> list[str]:
    return sorted({*re.findall(r"int8|fp16", out)})


def _steps(place: Path, out: str) -> list[Any]:
    """Return the steps of a run, and the weights that it ended with."""
    from specport.quantize.rl import record

    steps = [(step.step, step.reward, step.tokens) for step in record.read(place / "run")]
    return [steps, digest(place / "run" / "model" / "model.safetensors")]


TRAININGS = {
    command.name: command
    for command in (
        Command(
            "quantize --distil",
            ("quantize", *_TEXT, *ON, "--from", "target", "--layers", "2", "--by", "influence", "--distil",
             "60", "--head-tokens", "0", "--out", "distilled"),
            _bundle("distilled"),
            made=("distilled",), program=_SMALLER,
        ),
        Command(
            "quantize head", ("quantize", "head", *_HEAD, "--inner", "64", "--out", "head"), _bundle("head"),
            made=("head",), program=_SMALLER,
        ),
        Command(
            "quantize mtp", ("quantize", "mtp", *_HEAD, "--out", "mtp"), _bundle("mtp"), made=("mtp",),
            program=_SMALLER,
        ),
        Command(
            "quantize layerskip",
            ("quantize", "layerskip", *_TEXT, *ON, "--tokens", "40", "--epochs", "2", "--out", "skips"),
            _weights("skips"),
            made=("skips",), program=_SMALLER,
        ),
        Command(
            "quantize diffusion",
            ("quantize", "diffusion", *_TEXT, *ON, "--tokens", "40", "--epochs", "1", "--layers", "2",
             "--out", "masks"),
            _weights("masks"),
            made=("masks",), program=_SMALLER,
        ),
        Command(
            "quantize pipo",
            ("quantize", "pipo", *_TEXT, *ON, "--tokens", "40", "--epochs", "1", "--rank", "4", "--out",
             "pairs"),
            _weights("pairs"),
            made=("pairs",), program=_SMALLER,
        ),
        Command(
            "quantize verifier",
            ("quantize", "verifier", "--target", "slim", "--quiet", *ON, "--skip",
             "0.4", "--trials", "14", "--tokens", "48", "--out", "verifier"),
            _mask,
            made=("verifier",),
        ),
        Command(
            "quantize speech",
            ("quantize", "speech", "--audio", "talks", "--model", "whisper",
             "--layers", "1", "--epochs", "2", "--quiet", *ON, "--out", "hears"),
            _weights("hears"),
            made=("hears",),
        ),
        Command(
            "quantize compare",
            ("quantize", "compare", "target", "--precision", "int8", "--precision", "fp16", "--rounds", "2",
             "--context", "32", *ON),
            _formats,
        ),
        Command(
            "quantize export --to hf",
            ("quantize", "export", "draft-bundle", "--to", "hf", "--out", "for-hf", "--quiet"),
            _weights("for-hf"),
            made=("for-hf",),
        ),
        Command(
            "rl",
            ("--model", "target", "--steps", "6", "--prompts", "2", "--samples", "2", "--max-new-tokens",
             "6", "--precision", "fp32", "--learning-rate", "1e-3", "--threads", "1", "--compare", "0",
             "--out", "run"),
            _steps,
            made=("run",),
            program=(str(_RL),),
        ),
    )
}  # fmt: skip
