"""`specport.calibrate`: measure what a target and its draft cost on a device, and keep it.

`specport.load` finds what is kept here by itself; nothing else has to be told.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from specport.calibration import exits, grafts, heads, stopping
from specport.calibration.heads import Head
from specport.calibration.measure import CONTEXTS, Measured, measure
from specport.core.engine import Engine, Generation
from specport.core.model_kinds import EarlyExitModel
from specport.core.planning.policies import Fixed
from specport.core.planning.step_costs import StepCosts
from specport.core.planning.stop_classifier import TOP_K
from specport.core.ports import Model
from specport.core.sampling.sampler import SamplingParams
from specport.drafters.spec import GRAFT, DraftModel, check_tokenizer, exit_in, models_in, parse
from specport.drafters.tree.graft import Variant
from specport.drafters.tree.graft_thresholds import Choice
from specport.errors import InvalidInput
from specport.models.source import ModelFiles
from specport.progress import Progress, part, silent
from specport.runtime import measurements
from specport.runtime.loading import Loader
from specport.runtime.profiles import cpu_name
from specport.runtime.registry import Loaded
from specport.text import builtin_prompts
from specport.text.tokenizer import load_tokenizer

_LOOP_TOKENS, _SAMPLE_TOKENS = 24, 64
_TARGET_S, _DRAFT_S = 30.0, 15.0  # of measuring steps


@dataclass(frozen=True)
class Report:
    """What was measured of one model.

    role:     "target", "draft" or "early exit".
    loop_s:   median seconds that a plain step takes beside the runtime's own call; targets only.
    path:     where it is kept; None where the backend gives no key to keep it under.
    heads:    of a draft: every size of language-model head that was tried, the whole one first; the best is
              used. A bundle's head is settled.
    trained:  the classifier for the policy of that name; None where there was too little to learn from.
    exit_layer: after which the model may exit; 0 = none.
    exits:    every layer that was tried for that; the best is used.
    grafts:   of a draft named as graft(MODEL): what was found for each checkpoint.
    """

    role: str
    name: str
    precision: str
    measured: Measured
    loop_s: float | None
    path: Path | None
    heads: tuple[Head, ...] = ()
    trained: stopping.Trained | None = None
    exit_layer: int = 0
    exits: tuple[exits.Exit, ...] = ()
    grafts: tuple[Choice, ...] = ()

    @property
    def head(self) -> Head | None:
        """The one of `heads` that is used."""
        return heads.best(self.heads) if self.heads else None


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

    A draft's language-model head is cut where that pays (see `heads`), the layer after which the target exits
    early is chosen where `draft` does not say it (see `exits`), and the thresholds of graft(MODEL) are found
    (see `grafts`). Takes about a minute a model, and some more for a graft. Run it on a machine that does
    nothing else. Raises SpecportError.
    """
    parts = parse(draft)
    specs, layer = models_in(parts), exit_in(parts)
    grafted = models_in([name for name in parts if name.startswith(f"{GRAFT}:")])
    drafts = len(specs) + (layer is not None)
    share = 1.0 / (1 + drafts)
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.1 * share))
    bar = part(progress, 0.1 * share, share)
    files, target = loader.target(model, precision, exact)
    found = report("target", files, target, loader, part(bar, 0.0, 0.7 if drafts else 1.0), _TARGET_S)
    reports, costs = [found], found.measured.costs
    if not drafts:
        return reports
    tokenizer = load_tokenizer(files.folder)
    written = builtin_prompts.write(
        target.model, tokenizer, builtin_prompts.PROMPTS, _SAMPLE_TOKENS, part(bar, 0.7, 1.0)
    )
    key, beside = target.key, files
    del target  # before the drafts come: two models need not fit
    if layer is not None:
        bar = part(progress, len(specs) * share + share, 1.0)
        reports += _exit(layer, beside, exact, loader, written, costs, bar)
    for number, spec in enumerate(specs, start=1):
        bar = part(progress, number * share, (number + 1) * share)
        files = loader.draft_files(spec, draft_precision, beside)
        own = load_tokenizer(files.folder)
        if spec in grafted:
            check_tokenizer(files.name, own, tokenizer)
        tokens = files.bundle.head_tokens if files.bundle else None
        loaded = loader.draft_with(files, tokens)
        tried: tuple[Head, ...] = ()
        speaks = not own.mismatch(tokenizer)  # the target's ids; else its text says nothing to the draft
        if files.bundle is None and speaks:
            tried = heads.compare(
                partial(loader.draft_with, files), loaded.model, written, costs,
                own.special_ids, part(bar, 0.0, 0.4),
            )  # fmt: skip
            tokens = heads.best(tried).tokens
        if tokens != loaded.head_tokens:
            loaded = loader.draft_with(files, tokens)
        traces = stopping.trace(loaded.model, loaded.head_tokens, written, TOP_K) if speaks else ()
        trained = stopping.train(traces, costs, heads.step_seconds(loaded.model)) if traces else None
        before = measurements.find_pair(key, files.fingerprint)
        graft = before.graft if before.head_tokens == tokens else None  # found with another head
        pair = measurements.Pair(tokens, trained.classifier if trained else None, graft)
        measurements.save_pair(key, files.fingerprint, pair)
        end = 0.6 if spec in grafted else 1.0
        found = report("draft", files, loaded, loader, part(bar, 0.4, end), _DRAFT_S)
        choices: tuple[Choice, ...] = ()
        if spec in grafted:
            choices = grafts.calibrate(
                loader.target_with(beside, exact).model,  # both models at once, as `specport run` has them
                tokenizer,
                costs,
                DraftModel(loaded.model, own, files.name, found.measured.costs, loaded.head_tokens),
                loader.profile,
                part(bar, end, 1.0),
            )
            kept = Variant(tuple(choice.checkpoint for choice in choices))
            measurements.save_pair(key, files.fingerprint, replace(pair, graft=kept))
        reports.append(replace(found, heads=tried, trained=trained, grafts=choices))
        del loaded
    return reports


def _exit(
    layer: int,
    files: ModelFiles,
    exact: bool,
    loader: Loader,
    written: Sequence[builtin_prompts.Text],
    costs: StepCosts,
    progress: Progress,
) -> list[Report]:
    """Of the target that exits early, and of its first layers. layer: 0 = the best one, which is kept."""
    tried: tuple[exits.Exit, ...] = ()
    if not layer:
        layers = exits.candidates(exits.num_layers(files.folder))
        tried = exits.compare(
            lambda layer: loader.target_with(files, exact, layer).model, layers, written, costs,
            part(progress, 0.0, 0.5),
        )  # fmt: skip
        layer = exits.best(tried).layer
        measurements.save_exit(files.fingerprint, loader.profile.name, layer)
    target = loader.target_with(files, exact, layer)
    whole = report("target", files, target, loader, part(progress, 0.5, 0.8), _TARGET_S)
    first = replace(target, model=exits.FirstLayers(cast(EarlyExitModel, target.model)))
    first = replace(first, key=measurements.of_exit(target.key))
    found = report("early exit", files, first, loader, part(progress, 0.8, 1.0), _DRAFT_S)
    return [replace(whole, exit_layer=layer), replace(found, exit_layer=layer, exits=tried)]


def report(
    role: str,
    files: ModelFiles,
    loaded: Loaded,
    loader: Loader,
    progress: Progress,
    budget_s: float,
    contexts: Sequence[int] = CONTEXTS,
) -> Report:
    """Measure what a loaded model's steps cost, and keep it.

    role: as in `Report`; budget_s, contexts: as for `measure`. Raises ModelError when the cache cannot be
    written.
    """
    measured = measure(loaded.model, contexts=contexts, budget_s=budget_s, progress=progress)
    loop = loop_seconds(loaded.model) if role == "target" else None
    about = {
        "role": role,
        "device": loader.profile.name,
        "processor": cpu_name(),
        "model": files.name,
        "precision": files.precision,
        "head": loaded.model.vocab_size,
        "exact": loaded.model.capabilities.exact,
        "threads": loader.threads,
        "python": platform.python_version(),
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rounds": measured.rounds,
        "outliers": len(measured.outliers),
        "loop_s": loop,
    }
    path = (
        measurements.save(loaded.key, measurements.Calibration(measured.costs, about)) if loaded.key else None
    )
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
