"""Layer masks: which layers of a target its slim verifier skips. `specport quantize verifier` writes them.

A mask is a small JSON file in a folder of its own. It holds for its target's weights at any precision, on any
device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specport.errors import ModelError
from specport.models import bundle
from specport.models.atomic import write_json
from specport.models.cache import cache_root
from specport.models.os_errors import cause
from specport.models.weight_sketch import same, sketch
from specport.outside import Format
from specport.outside.numbers import Amount

MASK_FILE = "verifier.json"
FORMAT = 1
MOST_LAYERS = 1 << 12
_BUILD = "build one with: specport quantize verifier"


@dataclass(frozen=True)
class LayerMask:
    """Hold which layers are skipped. Raises ValueError for layers that cannot be.

    target, target_shape, target_fingerprint, target_sketch: as in `Bundle`.
    skipped:   ascending; never the first or the last of `num_layers`.
    cost:      mean margin-violation cost a token of the mask (`quantize.slim.cost`).
    agreement: share of tokens at which slim verifier and target have the same likeliest one.
    measured:  conditions of both, and of the search. provenance: command, date, versions.
    """

    target: str
    target_shape: str
    target_fingerprint: str
    target_sketch: tuple[float, ...]
    num_layers: int
    skipped: tuple[int, ...]
    cost: Amount
    agreement: Amount
    measured: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        last = self.num_layers - 1
        if not 2 < self.num_layers <= MOST_LAYERS:
            raise ValueError(f"no model of {self.num_layers} layers has a slim verifier")
        if not self.skipped or list(self.skipped) != sorted({*self.skipped}):
            raise ValueError("the skipped layers are not in ascending order")
        if not 0 < self.skipped[0] <= self.skipped[-1] < last:
            raise ValueError(f"layers are skipped that are not between the first and the last, {last}")

    def check_target(self, folder: Path, name: str, fingerprint: str) -> None:
        """Raise ModelError where the model in `folder` is not the mask's target at some precision."""
        wrong = ""
        if bundle.shape(folder) != self.target_shape:
            wrong = "its configuration differs"
        elif fingerprint != self.target_fingerprint and not same(self.target_sketch, sketch(folder)):
            wrong = "its weights differ"
        if wrong:
            raise ModelError(f"the slim verifier is of {self.target}, not of {name}: {wrong}", _BUILD)


_MASK = Format(LayerMask, "a slim verifier's layer mask", _BUILD, version=FORMAT, most_bytes=1 << 20)


@dataclass(frozen=True)
class _Registered:
    folder: Path


_REGISTERED = Format(_Registered, "the place of a slim verifier")


def write(folder: Path, mask: LayerMask) -> None:
    """Write a mask to a folder. Raises OSError."""
    write_json(folder / MASK_FILE, {"format": FORMAT, **asdict(mask)})


def read(folder: Path) -> LayerMask:
    """Return the mask in a folder. Raises ModelError."""
    return _MASK.read(folder / MASK_FILE)


def register(folder: Path, target_fingerprint: str) -> None:
    """Make tiered verification use this mask with that target from now on. Raises ModelError."""
    path = _place(target_fingerprint)
    try:
        write_json(path, {"folder": str(folder.resolve())})
    except OSError as error:
        message, hint = cause(error)
        raise ModelError(f"cannot write {path}: {message}", hint) from error


def registered(target_fingerprint: str) -> LayerMask | None:
    """Return the mask that was last built for a target, or None where it is missing or damaged."""
    found = _REGISTERED.find(_place(target_fingerprint))
    return None if found is None else _MASK.find(found.folder / MASK_FILE)


def _place(target_fingerprint: str) -> Path:
    return cache_root() / "verifiers" / f"{target_fingerprint[:24]}.json"
