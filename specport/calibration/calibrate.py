"""`specport.calibrate`: measure what a target and its draft cost on a device, and store it.

`specport.load` finds the stored measurements by itself.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np

from specport.calibration import exits, grafts, heads, mtp, stopping, target_text
from specport.calibration.heads import Head
from specport.calibration.measure import CONTEXTS, Measured, measure
from specport.calibration.other_load import OtherLoad
from specport.core.engine import Engine
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.stop_classifier import TOP_K
from specport.core.ports import Model
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.drafters.build import check_tokenizer
from specport.drafters.context import DraftModel
from specport.drafters.registry import GRAFT, MODEL, MTP
from specport.drafters.spec import DraftSpec, PartSpec, parse
from specport.drafters.tree.graft import Variant
from specport.drafters.tree.graft_thresholds import Choice
from specport.errors import DeviceError, InvalidInput
from specport.models.source import ModelFiles
from specport.progress import Progress, part, silent
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.devices.registry import Loaded
from specport.runtime.drafts.mtp import head_of, module_of
from specport.runtime.loading import Loader
from specport.runtime.stored import measurements
from specport.text import builtin_prompts
from specport.text.tokenizer import Tokenizer, load_tokenizer

_LOOP_TOKENS = 24
SAMPLE_TOKENS = 64  # of each text that a target writes for its drafts
TARGET_S, DRAFT_S = 30.0, 15.0  # time for measuring steps


@dataclass(frozen=True)
class Report:
    """Measurements of one model.

    role:     "target", "draft", "draft head", "early exit" or "multi-token prediction".
    loop_s:   median seconds of a plain step outside the runtime's own call; targets only.
    path:     file of the stored costs; None where the backend gives no key to store them under.
    heads:    of a draft: every size of language-model head that was tried, the whole one first; the best is
              used. A bundle's head is fixed.
    trained:  the classifier for the policy of that name; None where there was too little to learn from.
    exit_layer: layers before the early exit; 0 = none.
    exits:    every exit that was tried; the best is used.
    grafts:   of a draft named as graft(MODEL): the choice for each checkpoint.
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
        """Return the head of `heads` that is used."""
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

    Also cuts a draft's language-model head where that is faster (`heads`), chooses the target's exit layer
    where `draft` names none (`exits`), and chooses the thresholds of graft(MODEL) (`grafts`). Takes about a
    minute per model, and some more for a graft. Run it on an idle machine. Raises SpecportError.
    """
    spec = parse(draft)
    specs, layer = spec.models, spec.exit_layer
    drafts = len(specs) + (layer is not None) + (MTP in spec.kinds)
    share = 1.0 / (1 + drafts)
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.1 * share))
    bar = part(progress, 0.1 * share, share)
    target_files, target = loader.target(model, precision, exact)
    result = report("target", target_files, target, loader, part(bar, 0.0, 0.7 if drafts else 1.0), TARGET_S)
    reports, costs = [result], result.measured.costs
    if not drafts:
        return reports
    tokenizer = load_tokenizer(target_files.folder)
    written = write_texts(target.model, tokenizer, part(bar, 0.7, 1.0))
    key = target.key
    del target  # two models need not fit into memory
    beside = Beside(loader, target_files, key, tokenizer, costs, written, exact)
    if layer is not None:
        reports += calibrate_exit(layer, beside, part(progress, len(specs) * share + share, 1.0))
    if MTP in spec.kinds:
        reports.append(calibrate_mtp(spec, beside, part(progress, 1.0 - share, 1.0)))
    for number, name in enumerate(specs, start=1):
        bar = part(progress, number * share, (number + 1) * share)
        reports.append(calibrate_draft(name, spec, beside, draft_precision, bar))
    return reports


@dataclass(frozen=True)
class Beside:
    """Hold the target that drafts are calibrated for.

    key: `Loaded.key` of the target. costs: of its steps. written: texts of its own.
    """

    loader: Loader
    files: ModelFiles
    key: str
    tokenizer: Tokenizer
    costs: StepCosts
    written: Sequence[target_text.Text]
    exact: bool


def write_texts(model: Model, tokenizer: Tokenizer, progress: Progress) -> list[target_text.Text]:
    """Return the texts of a target that its drafts are calibrated on."""
    return target_text.write(model, tokenizer, builtin_prompts.PROMPTS, SAMPLE_TOKENS, progress)


def calibrate_draft(
    name: str, spec: DraftSpec, target: Beside, precision: str | None, progress: Progress
) -> Report:
    """Measure a draft model's steps, and choose its head, its classifier and the thresholds of a graft.

    name: of the model, as in `spec`, which says whether it is grafted. precision: of its weights.
    Everything is stored. Raises SpecportError.
    """
    loader, costs, written = target.loader, target.costs, target.written
    grafted = next((part for part in spec.parts if part.model == name and part.kind == GRAFT), None)
    found = loader.draft_files(name, precision, target.files, target.tokenizer)
    files = found.files
    if grafted is not None:
        check_tokenizer(spec, grafted, files.name, found.mismatch)
    if files.bundle and files.bundle.recurrent:
        return _hidden_head(files, target.files, target.exact, loader)
    if files.bundle and files.bundle.mtp:
        return _mtp_head(name, files, target, progress)
    tokens = files.bundle.head_tokens if files.bundle else None
    loaded = loader.draft_with(files, tokens)
    tried: tuple[Head, ...] = ()
    same_ids = not found.mismatch  # else the target's ids mean nothing to the draft
    if files.bundle is None and same_ids:
        tried = heads.compare(
            partial(loader.draft_with, files), loaded.model, written, costs,
            found.tokenizer.special_ids, part(progress, 0.0, 0.4),
        )  # fmt: skip
        tokens = heads.best(tried).tokens
    if tokens != loaded.head_tokens:
        loaded = loader.draft_with(files, tokens)
    traces = stopping.trace(loaded.model, loaded.head_tokens, written, TOP_K) if same_ids else ()
    trained = stopping.train(traces, costs, heads.step_seconds(loaded.model)) if traces else None
    stored = measurements.find_pair(target.key, files.fingerprint)
    graft = stored.graft if stored.head_tokens == tokens else None  # else chosen with another head
    pair = measurements.Pair(tokens, trained.classifier if trained else None, graft)
    measurements.save_pair(target.key, files.fingerprint, pair)
    end = 1.0 if grafted is None else 0.6
    result = report("draft", files, loaded, loader, part(progress, 0.4, end), DRAFT_S)
    choices: tuple[Choice, ...] = ()
    if grafted is not None:
        choices = grafts.calibrate(
            loader.target_with(target.files, target.exact).model,  # both models are loaded, as in use
            target.tokenizer,
            costs,
            DraftModel(loaded.model, found.tokenizer, files.name, result.measured.costs, loaded.head_tokens),
            loader.profile,
            part(progress, end, 1.0),
        )
        variant = Variant(tuple(choice.checkpoint for choice in choices))
        measurements.save_pair(target.key, files.fingerprint, replace(pair, graft=variant))
    return replace(result, heads=tried, trained=trained, grafts=choices)


def calibrate_exit(layer: int, target: Beside, progress: Progress) -> list[Report]:
    """Measure the target with an early exit, and its first layers.

    layer: 0 = choose the best exit and store it.
    """
    loader, files, exact = target.loader, target.files, target.exact
    tried: tuple[exits.Exit, ...] = ()
    if not layer:
        layers = exits.candidates(exits.num_layers(files.folder))
        tried = exits.compare(
            lambda layer: loader.target_with(files, exact, layer).model, layers, target.written, target.costs,
            part(progress, 0.0, 0.5),
        )  # fmt: skip
        layer = exits.best(tried).layer
        measurements.save_exit(files.fingerprint, loader.profile.name, layer)
    loaded = loader.target_with(files, exact, layer)
    whole = report("target", files, loaded, loader, part(progress, 0.5, 0.8), TARGET_S)
    first = replace(loaded, model=exits.FirstLayers(loaded.model))
    first = replace(first, key=measurements.of_exit(loaded.key))
    exit_report = report("early exit", files, first, loader, part(progress, 0.8, 1.0), DRAFT_S)
    return [replace(whole, exit_layer=layer), replace(exit_report, exit_layer=layer, exits=tried)]


def calibrate_mtp(spec: DraftSpec, target: Beside, progress: Progress) -> Report:
    """Measure the steps of the target's own module for multi-token prediction, and choose its head.

    spec: names it. Everything is stored. Raises SpecportError.
    """
    progress("the module reads", 0.0)
    always = sorted(target.tokenizer.special_ids)
    found = mtp.choose(spec, target.loader, target.files, target.exact, target.written, target.costs, always)
    loaded = replace(found.loaded, key=measurements.of_head(target.key, found.files.fingerprint))
    bar = part(progress, 0.5, 1.0)
    result = report("multi-token prediction", found.files, loaded, target.loader, bar, DRAFT_S)
    return replace(result, heads=found.tried)


def _hidden_head(head: ModelFiles, files: ModelFiles, exact: bool, loader: Loader) -> Report:
    """Measure a step of a recurrent head beside its target, and store it."""
    target = loader.target_with(files, exact, head=head)
    if target.model.hidden_head is None:
        raise DeviceError(f"models have no draft head on {loader.profile.name}", "choose another --draft")
    load = OtherLoad()
    seconds = heads.head_step_seconds(target.model)
    costs = StepCosts((1,), (0,), ((seconds,),), measured=True)
    measured = Measured(costs, ((0.0,),), (), heads.HEAD_ROUNDS, load.cores())
    key = measurements.of_head(target.key, head.fingerprint)
    about = {"role": "draft head", "device": loader.profile.name, "model": files.name}
    path = measurements.save(key, measurements.Calibration(costs, about)) if key else None
    return Report("draft head", head.name, head.precision, measured, None, path)


def _mtp_head(name: str, head: ModelFiles, target: Beside, progress: Progress) -> Report:
    """Measure the steps of a trained module for multi-token prediction. Its training cut its head."""
    loader = target.loader
    module = module_of(DraftSpec((PartSpec(MODEL, name),)), target.files, loader)
    tokens = head_of(module, loader)
    model = loader.target_with(target.files, target.exact, mtp=module, mtp_tokens=tokens).model.mtp
    if model is None:
        raise DeviceError(
            f"models have no multi-token prediction on {loader.profile.name}", "choose another --draft"
        )
    loaded = Loaded(model, key=measurements.of_head(target.key, head.fingerprint), head_tokens=tokens)
    return report("multi-token prediction", head, loaded, loader, progress, DRAFT_S)


def report(
    role: str,
    files: ModelFiles,
    loaded: Loaded,
    loader: Loader,
    progress: Progress,
    budget_s: float,
    contexts: Sequence[int] = CONTEXTS,
) -> Report:
    """Measure a loaded model's step costs, and store them.

    role: as in `Report`. budget_s, contexts: as for `measure`.
    Raises ModelError when the cache cannot be written.
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
        "other_cores": round(measured.other_cores, 2),
        "loop_s": loop,
    }
    path = (
        measurements.save(loaded.key, measurements.Calibration(measured.costs, about)) if loaded.key else None
    )
    return Report(role, files.name, files.precision, measured, loop, path)


def loop_seconds(model: Model) -> float:
    """Return the median seconds of a plain decoding step outside the runtime's inference call."""
    engine = Engine(model)
    prompt = [int(i) for i in np.random.default_rng(0).integers(0, model.vocab_size, 32)]
    if len(prompt) + _LOOP_TOKENS > model.max_context:
        raise InvalidInput(f"a context of {model.max_context} tokens is too small to calibrate")
    outside: list[float] = []
    generation = Generation(prompt, SamplingParams(), _LOOP_TOKENS)
    before = (0.0, 0.0)
    for _ in engine.run([generation]):
        now = (generation.metrics.decode_s, generation.metrics.verify_s)
        outside.append((now[0] - before[0]) - (now[1] - before[1]))
        before = now
    return float(np.median(outside[1:]))
