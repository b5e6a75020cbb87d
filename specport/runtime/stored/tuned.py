"""Keep what `specport tune` chose for a model on a device, so that `specport.load` finds it.

One small file for each model and device. It holds a draft expression for each weight format that was tuned,
and the weight format itself where another than the device's default gives the same quality faster. A damaged
file counts as none. Only this module reads and writes these files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from specport.drafters.spec import DraftSpec, parse
from specport.errors import ModelError, SpecportError
from specport.models import bundle
from specport.models.atomic import write_json
from specport.models.cache import cache_root
from specport.models.os_errors import cause
from specport.models.precision import parse as parse_precision
from specport.models.source import ModelFiles
from specport.outside import Format
from specport.outside.places import expanded

FORMAT = 1
AGAIN = "run specport tune again, or specport tune --forget"


@dataclass(frozen=True)
class Choice:
    """Hold the drafters that were chosen for one weight format of a model.

    draft:       expression; models as absolute paths or hub ids. "none" where nothing was faster.
    fingerprint: of the target's weights.
    speed_up:    end to end over plain decoding, as measured.
    about:       date, prompts and settings of the measurement, for people.
    """

    draft: str
    fingerprint: str
    speed_up: float
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuned:
    """Hold what was tuned for one model on one device.

    precision: weight format to use where the user names none; None = the device's default.
    choices:   weight format -> drafters.
    Raises InvalidInput for a weight format that there is not.
    """

    precision: str | None = None
    choices: Mapping[str, Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision is not None:
            parse_precision(self.precision)

    def draft(self, files: ModelFiles) -> tuple[DraftSpec | None, list[str]]:
        """Return the drafters chosen for these weights, or None, and notes for the user."""
        choice = self.choices.get(files.precision)
        if choice is None:
            return None, []
        if choice.fingerprint != files.fingerprint:
            return None, [f"the tuned drafters are not used: {files.name} has changed since; {AGAIN}"]
        try:
            spec = parse(choice.draft)
            for model in spec.models:
                _check_draft(model, files)
        except SpecportError as error:
            return None, [f"the tuned drafters {choice.draft} are not used: {error.message}; {AGAIN}"]
        gain = f", measured {choice.speed_up:.2f} times as fast as plain decoding" * bool(spec)
        return spec, [f"drafters by specport tune: {spec}{gain}"]


_TUNED = Format(Tuned, "a result of specport tune", AGAIN, version=FORMAT)


def find(model: str | None, device: str) -> Tuned:
    """Return what was tuned for a model (as the user names it) on a device; empty where there is nothing."""
    return _TUNED.find(_path(model, device)) or Tuned()


def keep(
    model: str | None, device: str, precision: str, choice: Choice, *, weights_too: bool = False
) -> Path:
    """Store the drafters chosen for a weight format, and return the path.

    precision: of the weights that they were chosen with.
    weights_too: whether this weight format is the one to use from now on where the user names none.
    Raises ModelError when the cache cannot be written.
    """
    before = find(model, device)
    after = replace(
        before,
        choices={**before.choices, precision: choice},
        precision=precision if weights_too else before.precision,
    )
    path = _path(model, device)
    content = {
        "format": FORMAT,
        "model": _identity(model),
        "device": device,
        "precision": after.precision,
        "choices": {name: asdict(each) for name, each in after.choices.items()},
    }
    try:
        write_json(path, content)
    except OSError as error:
        message, _ = cause(error)
        hint = "free some space or set SPECPORT_CACHE to another folder"
        raise ModelError(f"cannot write {path}: {message}", hint) from error
    return path


def forget(model: str | None, device: str) -> bool:
    """Drop what was tuned for a model on a device; return whether there was anything."""
    path = _path(model, device)
    there = path.is_file()
    path.unlink(missing_ok=True)
    return there


def lasting(model: str) -> str:
    """Return a model's name that means the same from any working folder."""
    path = expanded(model)
    return str(path.resolve()) if path.exists() else model


def _check_draft(model: str, files: ModelFiles) -> None:
    """Raise ModelError where a chosen draft is gone or is not the target's any more."""
    path = Path(model)
    if path.is_absolute() and not path.exists():
        raise ModelError(f"{path} is gone")
    if "/" not in model and not path.exists() and model != "default":  # a drafter of a package that is gone
        raise ModelError(f"{model} is not installed")
    if (path / bundle.BUNDLE_FILE).is_file():
        bundle.read(path).check_target(files.folder, files.name, files.fingerprint)


def _identity(model: str | None) -> str:
    return "default" if model in (None, "default") else lasting(str(model))


def _path(model: str | None, device: str) -> Path:
    digest = hashlib.sha256(f"{_identity(model)}\0{device}".encode()).hexdigest()
    return cache_root() / "tuned" / f"{digest[:24]}.json"
