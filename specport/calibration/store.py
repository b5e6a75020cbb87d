"""Keeps measured step costs, one small JSON file a model. Knows nothing of how they are measured."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specport.core.costs import StepCosts
from specport.errors import ModelError
from specport.models.cache import cache_root

FORMAT = 1


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
        stored = json.loads(_path(key).read_text(encoding="utf-8"))
        if not key or stored["format"] != FORMAT:
            return None
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
    path = _path(key)
    text = json.dumps({"format": FORMAT, "about": dict(calibration.about), "costs": table}, indent=1)
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
