"""Store measurements as small JSON files: step costs of a model, the best settings of a pair.

This module does not measure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta, Struct

from specport.core.planning.step_costs import StepCosts
from specport.core.policies.stop_classifier import NUM_FEATURES, Classifier
from specport.drafters.tree.graft import Checkpoint, Variant
from specport.errors import ModelError
from specport.models import bundle
from specport.models.atomic import write_json
from specport.models.cache import cache_root
from specport.models.os_errors import cause
from specport.outside import Format, Table
from specport.runtime.stored.cost_table import CostTable

FORMAT = 1


T = TypeVar("T")


class _Calibration(Struct):
    costs: CostTable
    about: Table


class _Classifier(Struct):
    """The arrays of a classifier as lists."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    inner: tuple[tuple[float, ...], ...]
    inner_bias: tuple[float, ...]
    outer: tuple[float, ...]
    outer_bias: float
    threshold: float

    def __post_init__(self) -> None:
        hidden = len(self.outer)
        lengths = {len(row) for row in self.inner} | {len(self.inner_bias)}
        if lengths != {hidden} or {len(self.inner), len(self.mean), len(self.scale)} != {NUM_FEATURES}:
            raise ValueError("the classifier's arrays have inconsistent shapes")

    def classifier(self) -> Classifier:
        arrays = {name: np.asarray(getattr(self, name), dtype=np.float64) for name in self.__struct_fields__}
        return Classifier(**{**arrays, "threshold": self.threshold})  # type: ignore[arg-type]


class _Pair(Struct):
    head: bundle.Ranges
    classifier: _Classifier | None
    graft: Annotated[tuple[Checkpoint, ...], Meta(min_length=1)] | None = None  # absent in earlier files

    def __post_init__(self) -> None:
        bundle.check_head(self.head)
        levels = [c.level for c in self.graft or ()]
        good = all(c.level >= 1 and c.threshold >= 0 and 0 < c.share <= 1 for c in self.graft or ())
        if not good or levels != sorted({*levels}):
            raise ValueError("the graft's checkpoints are invalid")


class _Cut(Struct):
    head: bundle.Ranges

    def __post_init__(self) -> None:
        bundle.check_head(self.head)


class _Exit(Struct):
    exit_layer: Annotated[int, Meta(ge=1, lt=1 << 16)]


_AGAIN = "run specport calibrate again"
_CALIBRATION = Format(_Calibration, "a calibration", _AGAIN, version=FORMAT)
_PAIR = Format(_Pair, "a calibration", _AGAIN, version=FORMAT)
_CUT = Format(_Cut, "a calibration", _AGAIN, version=FORMAT)
_EXIT = Format(_Exit, "a calibration", _AGAIN, version=FORMAT)


@dataclass(frozen=True)
class Calibration:
    """Hold the measured costs of one model as it was loaded.

    about: device, model, precision, mode, runtime versions, threads and date, for people.
    """

    costs: StepCosts
    about: Mapping[str, Any] = field(default_factory=dict)


def find(key: str) -> Calibration | None:
    """Return the measurement stored under `Loaded.key`, or None. A damaged file counts as none."""
    found = _find(_CALIBRATION, key)
    return None if found is None else Calibration(found.costs.costs(), found.about)


def save(key: str, calibration: Calibration) -> Path:
    """Write the measurement and return its path. Raises ModelError when the cache cannot be written."""
    costs = calibration.costs
    table = {
        "widths": costs.widths,
        "contexts": costs.contexts,
        "seconds": costs.seconds,
        "change": costs.change,
    }
    return _write(key, {"about": dict(calibration.about), "costs": table})


@dataclass(frozen=True)
class Pair:
    """Hold the best settings found for a draft with a target.

    head_tokens: ids that the draft's head keeps; None = all.
    classifier:  for the policy "classifier"; None = not trained.
    graft:       for graft(MODEL); None = not calibrated. Only its checkpoints are stored.
    """

    head_tokens: tuple[int, ...] | None = None
    classifier: Classifier | None = None
    graft: Variant | None = None


def find_pair(target_key: str, draft_fingerprint: str) -> Pair:
    """Return the stored settings of this target (`Loaded.key`) and draft; empty where missing or damaged."""
    found = _find(_PAIR, _pair(target_key, draft_fingerprint))
    if found is None:
        return Pair()
    classifier = None if found.classifier is None else found.classifier.classifier()
    graft = None if found.graft is None else Variant(found.graft)
    return Pair(bundle.expand(found.head) or None, classifier, graft)


def save_pair(target_key: str, draft_fingerprint: str, pair: Pair) -> Path | None:
    """Write the settings of a pair and return the path, None without a key.

    Raises ModelError when the cache cannot be written.
    """
    key = _pair(target_key, draft_fingerprint)
    if not key:
        return None
    ranges = bundle.ranges(pair.head_tokens or ())
    table: dict[str, Any] | None = None
    if pair.classifier is not None:
        table = {f.name: np.asarray(getattr(pair.classifier, f.name)).tolist() for f in fields(Classifier)}
    graft = None if pair.graft is None else [asdict(checkpoint) for checkpoint in pair.graft.checkpoints]
    return _write(key, {"head": ranges, "classifier": table, "graft": graft})


def carry_over(old_key: str, new_key: str, old_draft: str, new_draft: str) -> None:
    """Keep what was measured of a draft for one of the same shapes with other weights.

    old_key, new_key: `Loaded.key`. old_draft, new_draft: fingerprints.
    Raises ModelError where the cache cannot be written.
    """
    if new_key and (found := find(old_key)):
        save(new_key, found)
    if old_draft == new_draft:
        return
    for path in sorted((cache_root() / "calibration").glob(f"*-{old_draft[:24]}.json")):
        target_key = path.stem.rpartition("-")[0]
        save_pair(target_key, new_draft, find_pair(target_key, old_draft))


def of_exit(target_key: str) -> str:
    """Return the key for the costs of a target's first layers."""
    return f"{target_key}-exit" if target_key else ""


def of_head(target_key: str, head_fingerprint: str) -> str:
    """Return the key for the costs of a recurrent head's steps, beside this target."""
    return f"{target_key}-head-{head_fingerprint[:24]}" if target_key else ""


def find_cut(fingerprint: str, device: str) -> tuple[int, ...] | None:
    """Return the ids that the head of a module for multi-token prediction keeps; None = all, or unknown.

    fingerprint: of the module. device: its name.
    """
    found = _find(_CUT, _cut(fingerprint, device))
    return None if found is None else bundle.expand(found.head) or None


def save_cut(fingerprint: str, device: str, tokens: Sequence[int] | None) -> Path:
    """Write the ids that a module's head keeps; None = all. Raises ModelError as `save_exit` does."""
    return _write(_cut(fingerprint, device), {"head": bundle.ranges(tokens or ())})


def find_exit(fingerprint: str, device: str) -> int | None:
    """Return the best exit layer of this model (weights and device name); None = not calibrated."""
    found = _find(_EXIT, _exit(fingerprint, device))
    return None if found is None else found.exit_layer


def save_exit(fingerprint: str, device: str, layer: int) -> Path:
    """Write the best exit layer and return the path. Raises ModelError when the cache cannot be written."""
    return _write(_exit(fingerprint, device), {"exit_layer": layer})


def _exit(fingerprint: str, device: str) -> str:
    return f"exit-{_on_device(fingerprint, device)}"


def _cut(fingerprint: str, device: str) -> str:
    return f"cut-{_on_device(fingerprint, device)}"


def _on_device(fingerprint: str, device: str) -> str:
    digest = hashlib.sha256(f"{fingerprint} {device}".encode())  # hashed, since a device may be a path
    return digest.hexdigest()[:24]


def _pair(target_key: str, draft_fingerprint: str) -> str:
    return f"{target_key}-{draft_fingerprint[:24]}" if target_key and draft_fingerprint else ""


def _find(kind: Format[T], key: str) -> T | None:
    """Return a stored object, or None where there is no usable one."""
    return kind.find(_path(key)) if key else None


def _write(key: str, content: Mapping[str, Any]) -> Path:
    path = _path(key)
    try:
        write_json(path, {"format": FORMAT, **content})
    except OSError as error:
        message, _ = cause(error)
        hint = "free some space or set SPECPORT_CACHE to another folder"
        raise ModelError(f"cannot write {path}: {message}", hint) from error
    return path


def _path(key: str) -> Path:
    return cache_root() / "calibration" / f"{key}.json"
