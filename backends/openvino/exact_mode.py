"""Load a target in exact mode: its logits do not depend on how tokens are split over steps.

The ways are tried in order: the profile's own kernels, full f32, then both with wider steps. What was found
is kept for each runtime, processor, model and settings (`runtime/numerics.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specport.backends.openvino import whisper
from specport.backends.openvino.compiling import Job, compiled, key_of, loaded
from specport.backends.openvino.paged.model import PagedModel

from specport.errors import DeviceError
from specport.runtime import numerics
from specport.runtime.devices.profiles import Profile
from specport.runtime.devices.registry import Loaded

_FEWEST = 5  # with AVX2, products of up to 4 rows round differently for some shapes of INT4 weights (2026.4)


def load_exact(job: Job, profile: Profile, notes: tuple[str, ...]) -> Loaded:
    """Return the model by the first way that is exact. Raises DeviceError where none is."""
    in_f32 = "exact mode runs in f32 here: the default kernels are not split-invariant"
    ways = [(profile.exact, notes), *([(profile.fallback, (*notes, in_f32))] if profile.fallback else [])]
    for fewest in (1, _FEWEST):
        for properties, told in ways:
            if found := _way(job, properties, told, fewest):
                return found
    raise DeviceError(
        "no exact mode on this device: logits depend on how tokens are split over steps"
        + (", even in f32" if profile.fallback else ""),
        "use --fast",
    )


def _way(job: Job, properties: Mapping[str, Any], notes: tuple[str, ...], fewest: int) -> Loaded | None:
    """Return the model with these properties, or None where its logits depend on the split.

    fewest: rows that each of its steps computes at least.
    """
    rows = "" if fewest == 1 else f"-rows-{fewest}"
    key = key_of(job, properties, padded=True) + rows
    if numerics.refuted(key):
        return None
    model = compiled(job, properties, exact_mode=True)
    if rows:
        if not isinstance(model, PagedModel) or not model.widen(fewest):
            return None
        notes = (*notes, f"exact mode computes {fewest} rows a step here: fewer are rounded differently")
    seen, progress = whisper.unconditioned(model), job.options.progress
    if not numerics.checked(seen, key, progress=progress):
        return None
    if isinstance(model, PagedModel):
        model.widest = numerics.checked_width(seen, key, progress=progress)
    return loaded(model, notes, key_of(job, properties, padded=True, hidden=False) + rows, job)
