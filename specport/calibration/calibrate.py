"""`specport.calibrate`: measure what a target and its draft cost on a device, and keep it.

`specport.load` finds what is kept here by itself; nothing else has to be told.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from specport.calibration import store
from specport.calibration.measure import Measured, measure
from specport.core.engine import Engine, Generation
from specport.core.policies import Fixed
from specport.core.ports import Model
from specport.core.sampling import SamplingParams
from specport.drafting import parse
from specport.errors import InvalidInput
from specport.loading import Loader
from specport.models.progress import Progress, part, silent
from specport.models.source import ModelFiles
from specport.profiles import cpu_name
from specport.registry import Loaded

_LOOP_TOKENS = 24


@dataclass(frozen=True)
class Report:
    """What was measured of one model.

    role:     "target" or "draft".
    loop_s:   median seconds that a plain step takes beside the runtime's own call; targets only.
    path:     where it is kept; None where the backend gives no key to keep it under.
    """

    role: str
    name: str
    precision: str
    measured: Measured
    loop_s: float | None
    path: Path | None


def calibrate(
    model: str | None = None,
    *,
    draft: str = "none",
    device: str = "auto",
    precision: str | None = None,
    draft_precision: str | None = None,
    exact: bool = True,
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> list[Report]:
    """Measure the target's steps, and those of each model in `draft`. Arguments as for `specport.load`.

    Takes about a minute a model. Run it on a machine that does nothing else. Raises SpecportError.
    """
    specs = [part.removeprefix("model:") for part in parse(draft) if part != "ngram"]
    share = 1.0 / (1 + len(specs))
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.1 * share))
    reports = []
    for i, spec in enumerate([None, *specs]):
        bar = part(progress, i * share + 0.1 * share, (i + 1) * share)
        if spec is None:
            files, loaded = loader.target(model, precision, exact)
            reports.append(_report("target", files, loaded, loader, bar, 40.0))
        else:
            files, loaded = loader.draft(spec, draft_precision)
            reports.append(_report("draft", files, loaded, loader, bar, 20.0))
        del loaded  # before the next one: two models need not fit
    return reports


def _report(
    role: str, files: ModelFiles, loaded: Loaded, loader: Loader, progress: Progress, budget_s: float
) -> Report:
    measured = measure(loaded.model, budget_s=budget_s, progress=progress)
    loop = loop_seconds(loaded.model) if role == "target" else None
    about = {
        "role": role,
        "device": loader.profile.name,
        "processor": cpu_name(),
        "model": files.name,
        "precision": files.precision,
        "exact": loaded.model.capabilities.exact,
        "threads": loader.threads,
        "python": platform.python_version(),
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rounds": measured.rounds,
        "outliers": len(measured.outliers),
        "loop_s": loop,
    }
    path = store.save(loaded.key, store.Calibration(measured.costs, about)) if loaded.key else None
    return Report(role, files.name, files.precision, measured, loop, path)


def loop_seconds(model: Model) -> float:
    """Median seconds of a plain decoding step outside the runtime's inference call."""
    engine = Engine(model)
    prompt = [int(i) for i in np.random.default_rng(0).integers(0, model.vocab_size, 32)]
    if len(prompt) + _LOOP_TOKENS > model.max_context:
        raise InvalidInput(f"a context of {model.max_context} tokens is too small to calibrate")
    outside: list[float] = []
    generation = Generation(prompt, engine.open(), SamplingParams(), Fixed(0), _LOOP_TOKENS)
    before = (0.0, 0.0)
    try:
        for _ in engine.run([generation]):
            now = (generation.metrics.decode_s, generation.metrics.verify_s)
            outside.append((now[0] - before[0]) - (now[1] - before[1]))
            before = now
    finally:
        engine.close(generation.handle)
    return float(np.median(outside[1:]))
