"""Keeps what was measured, one small JSON file each: step costs of a model, the head chosen for a draft.

Knows nothing of how it is measured.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specport.core.costs import StepCosts
from specport.errors import ModelError
from specport.models.cache import cache_root

FORMAT = 1
_MOST_TOKENS = 1 << 24  # no vocabulary is larger: a damaged file must not fill the memory


@dataclass(frozen=True)
class Calibration:
    """Measured costs of one model as it was loaded.

    about: device, model, precision, mode, runtime versions, threads, date: for people.
    """

    costs: StepCosts
    about: Mapping[str, Any] = field(default_factory=dict)


def find(key: str) -> Calibration | None:
    """What was measured under `Loaded.key`, or None. A damaged file counts as none."""
    try:
        stored = _read(key)
        table = stored["costs"]
        costs = StepCosts(
            tuple(table["widths"]),
            tuple(table["contexts"]),
            tuple(tuple(row) for row in table["seconds"]),
            float(table["change"]),
            measured=True,
        )
        return Calibration(costs, dict(stored["about"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(key: str, calibration: Calibration) -> Path:
    """Write the file, all at once. Raises ModelError when the cache cannot be written."""
    costs = calibration.costs
    table = {
        "widths": costs.widths,
        "contexts": costs.contexts,
        "seconds": costs.seconds,
        "change": costs.change,
    }
    return _write(key, {"about": dict(calibration.about), "costs": table})


def find_head(target_key: str, draft_fingerprint: str) -> tuple[int, ...] | None:
    """Ids that the draft's head is to keep beside this target; None = all, or nothing was measured."""
    try:
        tokens: list[int] = []
        for first, end in _read(_pair(target_key, draft_fingerprint))["head"]:
            if not 0 <= int(first) < int(end) <= _MOST_TOKENS:
                return None
            tokens.extend(range(int(first), int(end)))
        return tuple(tokens) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_head(target_key: str, draft_fingerprint: str, tokens: Sequence[int] | None) -> Path:
    """Keep the choice as ranges of rising ids. Raises ModelError when the cache cannot be written."""
    ranges: list[list[int]] = []
    for token in tokens or ():
        if ranges and ranges[-1][1] == token:
            ranges[-1][1] = token + 1
        else:
            ranges.append([token, token + 1])
    return _write(_pair(target_key, draft_fingerprint), {"head": ranges})


def _pair(target_key: str, draft_fingerprint: str) -> str:
    return f"{target_key}-{draft_fingerprint[:24]}" if target_key and draft_fingerprint else ""


def _read(key: str) -> dict[str, Any]:
    """Raises an OSError, ValueError, KeyError or TypeError where there is nothing good."""
    stored: dict[str, Any] = json.loads(_path(key).read_text(encoding="utf-8"))
    if not key or stored["format"] != FORMAT:
        raise ValueError(key)
    return stored


def _write(key: str, content: Mapping[str, Any]) -> Path:
    path = _path(key)
    text = json.dumps({"format": FORMAT, **content}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise ModelError(
            f"cannot write {path}: {error.strerror or error}",
            "free some space or set SPECPORT_CACHE to another folder",
        ) from error
    return path


def _path(key: str) -> Path:
    return cache_root() / "calibration" / f"{key}.json"
