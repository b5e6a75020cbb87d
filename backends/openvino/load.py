"""Load an IR folder on a device: properties, compilation, and the check of exact mode.

A profile with step widths uses the model of fixed shapes (`static/model.py`), all others the paged model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import openvino as ov
from specport.backends.openvino import architecture, whisper
from specport.backends.openvino.context_limit import context_limit
from specport.backends.openvino.graph import surgery as graph
from specport.backends.openvino.graph.halves import split
from specport.backends.openvino.graph.merge import PAIRS, TRIPLES, merge_products
from specport.backends.openvino.graph.recurrent import has_recurrent_state
from specport.backends.openvino.hidden_head import load_head
from specport.backends.openvino.mtp import load_mtp
from specport.backends.openvino.paged.early_exit import ExitModel
from specport.backends.openvino.paged.hybrid import HybridModel
from specport.backends.openvino.paged.model import PagedModel
from specport.backends.openvino.probe import computes_on
from specport.backends.openvino.request import HeadRows, Request
from specport.backends.openvino.static.graph import to_static
from specport.backends.openvino.static.model import StaticModel
from specport.backends.openvino.static.runner import StaticRunner

from specport.errors import DeviceError, InvalidInput, ModelError
from specport.models.source import IR_BIN
from specport.models.whisper import is_whisper
from specport.runtime import memory
from specport.runtime import numerics as exact
from specport.runtime.profiles import Profile, cpu_flags
from specport.runtime.registry import Loaded, LoadOptions, first_step, settings_key

if TYPE_CHECKING:
    from specport.models.source import ModelFiles

_STATIC_CONTEXT = 1024  # with fixed shapes every step reads the whole context
_NARROWEST = 2  # one token uses another attention kernel, which is wrong in bf16 on the CPU (2026.4)
_FEWEST = 5  # with AVX2, products of up to 4 rows round differently for some shapes of INT4 weights (2026.4)
_DECODE = 64  # wider steps are for prompts
_PRECISION = "INFERENCE_PRECISION_HINT"
_ALIGNMENT = 64  # the number of rows of a static cache is a multiple of it


def load(files: ModelFiles, options: LoadOptions) -> Loaded:
    """Load the model in `files.folder`, ready to step.

    An exact target is checked once for each runtime, processor, model and settings. Where the default kernels
    round differently for different splits, it is loaded again in full f32.

    Raises ModelError, DeviceError, and InvalidInput for a cache that is too small for any text.
    """
    architecture.check(files.folder, files.name)
    profile = for_processor(options, files.precision).fitted(files.folder)
    notes = notes_for(files, options)
    if files.precision == "fp32" and profile.fallback:
        # fp32 weights imply f32 arithmetic.
        f32 = profile.fallback
        profile = replace(profile, exact=f32, fast=f32, draft=f32)
    if options.role == "draft":
        # Pad like an exact target, although the rounding of a draft does not matter: one and two new
        # tokens then have the same shape, and a change of shape costs more than the second token.
        model = _compile(files, options, profile.draft, exact_mode=True)
        return _loaded(model, notes, _key(files, options, profile.draft, padded=True), files, options)
    if not options.exact:
        model = _compile(files, options, profile.fast, exact_mode=False)
        plain = replace(options, hidden_layers=())
        return _loaded(model, notes, _key(files, plain, profile.fast, padded=False), files, options)
    in_f32 = "exact mode runs in f32 here: the default kernels are not split-invariant"
    ways = [(profile.exact, notes), *([(profile.fallback, (*notes, in_f32))] if profile.fallback else [])]
    for fewest in (1, _FEWEST):
        for properties, told in ways:
            if found := _exact(files, options, properties, told, fewest):
                return found
    raise DeviceError(
        "no exact mode on this device: logits depend on how tokens are split over steps"
        + (", even in f32" if profile.fallback else ""),
        "use --fast",
    )


def _exact(
    files: ModelFiles,
    options: LoadOptions,
    properties: Mapping[str, Any],
    notes: tuple[str, ...],
    fewest: int,
) -> Loaded | None:
    """Return the model with these properties, or None where its logits depend on the split.

    fewest: rows that each of its steps computes at least.
    """
    rows = "" if fewest == 1 else f"-rows-{fewest}"
    key = _key(files, options, properties, padded=True) + rows
    if exact.refuted(key):
        return None
    model = _compile(files, options, properties, exact_mode=True)
    if rows:
        if not isinstance(model, PagedModel) or not model.widen(fewest):
            return None
        notes = (*notes, f"exact mode computes {fewest} rows a step here: fewer are rounded differently")
    seen = whisper.unconditioned(model)
    if not exact.checked(seen, key, progress=options.progress):
        return None
    if isinstance(model, PagedModel) and not exact.checked_wide(seen, key, progress=options.progress):
        model.widest = exact.NARROW
    # Outputs of hidden states may decide how kernels are fused, but hardly what a step costs.
    costs_key = _key(files, replace(options, hidden_layers=()), properties, padded=True) + rows
    return _loaded(model, notes, costs_key, files, options)


def _loaded(
    model: PagedModel | StaticModel, notes: tuple[str, ...], key: str, files: ModelFiles, options: LoadOptions
) -> Loaded:
    settings = _settings(options, for_processor(options, files.precision).exact)
    compile_ = partial(compile_on_device, files=files, options=options, settings=settings)
    # The runtime repacks weights at the first step: 1.9 s for a draft of 0.5B in INT4, 2 cores.
    prepare = partial(first_step, whisper.unconditioned(model))
    return Loaded(
        model, notes, key, options.head_tokens, prepare=prepare, speech=whisper.speech(model, files, compile_)
    )


def for_processor(options: LoadOptions, precision: str) -> Profile:
    """Return the profile with the properties for AMX, where the processor has it."""
    profile = options.profile
    if computes_on(profile) != "CPU" or "amx_bf16" not in cpu_flags():
        return profile
    extra = profile.amx
    if precision.startswith(("fp", "bf")):  # "ir" of unknown precision is mostly INT8 or INT4
        if _threads(options) != 1:
            return profile
        # The bf16 kernel of an MLP (LLMMLP) shares work among pairs of threads. With one thread, OpenVINO
        # 2026.4 divides by zero and the process dies.
        extra = {_PRECISION: "f32"}
    exact, fast, draft = ({**table, **extra} for table in (profile.exact, profile.fast, profile.draft))
    return replace(profile, exact=exact, fast=fast, draft=draft)


def notes_for(files: ModelFiles, options: LoadOptions) -> tuple[str, ...]:
    """Return notes for the user about the target's device; none for a draft."""
    if options.role == "draft":
        return ()
    profile = options.profile
    notes = [*([profile.emulation] if profile.emulation else []), *architecture.notes(files.folder)]
    longest = context_limit(files.folder, options.max_context)
    if profile.buckets and options.max_context is None and longest > _STATIC_CONTEXT:
        notes.append(
            f"the context is {_STATIC_CONTEXT} tokens on {profile.name}, where each step reads all of it: "
            "--max-context sets another length"
        )
    if options.threads is not None and computes_on(profile) != "CPU":
        notes.append(f"{profile.device} has no setting for the number of threads: --threads is ignored")
    return tuple(notes)


def _threads(options: LoadOptions) -> int | None:
    return options.threads or os.cpu_count()


def _key(files: ModelFiles, options: LoadOptions, properties: Mapping[str, Any], *, padded: bool) -> str:
    """Return a key of everything that decides which kernels run; measurements are stored under it."""
    profile = options.profile
    static = {"buckets": profile.buckets, "context": options.max_context} if profile.buckets else {}
    facts: dict[str, Any] = {
        "runtime": ov.get_version(),
        "processor": ov.Core().get_property(computes_on(profile), "FULL_DEVICE_NAME"),
        "weights": files.fingerprint,
        "threads": _threads(options),
        "padded": padded,
        **static,
        **properties,
    }
    return settings_key(options, **facts)


def _compile(
    files: ModelFiles, options: LoadOptions, properties: Mapping[str, Any], *, exact_mode: bool
) -> PagedModel | StaticModel:
    settings = _settings(options, properties)
    # Before the weights are read: mapped weights fill free memory page by page, and kernels repack them.
    given, weights = options.cache_bytes, (files.folder / IR_BIN).stat().st_size
    cache_bytes = memory.default_share(options.role, weights) if given is None else given
    if is_whisper(files.folder):
        compile_ = partial(compile_on_device, files=files, options=options, settings=settings)
        on_cpu = computes_on(options.profile) == "CPU"
        return _with_room(
            whisper.load_decoder(files, options, compile_, cache_bytes, exact=exact_mode, on_cpu=on_cpu)
        )
    model = graph.read_model(files.folder)
    if hybrid := has_recurrent_state(model):
        _check_recurrent(files, options)
    hidden_head = load_head(model, options)
    if options.profile.buckets:
        static = _static(model, files, options, settings, cache_bytes, exact_mode=exact_mode)
        static.hidden_head = hidden_head
        return _with_room(static)
    limit = context_limit(files.folder, options.max_context)
    if options.exit_layer:
        parts = _early_exit(model, files, options, settings, limit, cache_bytes, exact_mode=exact_mode)
        return _with_room(parts)
    mtp = load_mtp(
        model, options, limit, partial(compile_on_device, files=files, options=options, settings=settings)
    )
    if computes_on(options.profile) == "CPU":
        merge_products(model, PAIRS if options.role == "draft" else TRIPLES)
    head_rows = None if options.head_tokens is None else _head_rows(model)  # before the graph is cut below
    paged = graph.to_paged(
        model,
        options.hidden_layers,
        options.head_tokens,
        head_input=head_rows is not None,
        # In exact mode each path of a tree is run as a chain. Only the CPU's kernels do this correctly.
        looks_ahead=not exact_mode and not hybrid and computes_on(options.profile) == "CPU",
        attention_rows=exact_mode and computes_on(options.profile) == "CPU",
    )
    request = Request(compile_on_device(paged, files, options, settings))
    make = partial(HybridModel, goes_back=options.role == "draft") if hybrid else PagedModel
    found = make(
        request,
        max_context=limit,
        exact=exact_mode,
        hidden_layers=options.hidden_layers,
        head_rows=head_rows,
        cache_bytes=cache_bytes,
    )
    found.hidden_head, found.mtp = hidden_head, mtp
    return _with_room(found)


def _settings(options: LoadOptions, properties: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **properties}
    if options.threads is not None and computes_on(options.profile) == "CPU":
        settings["INFERENCE_NUM_THREADS"] = options.threads
    return settings


def _check_recurrent(files: ModelFiles, options: LoadOptions) -> None:
    """Raise ModelError where a model with recurrent states is to do what it cannot."""
    if options.profile.buckets:
        raise ModelError(
            f"{files.name} has recurrent layers, which have no fixed shapes for {options.profile.name}",
            "choose another --device, such as the CPU",
        )
    if options.exit_layer:
        raise ModelError(
            f"{files.name} has recurrent layers, which cannot exit early", "choose another --draft"
        )


_AnyModel = TypeVar("_AnyModel", PagedModel, StaticModel)


def _with_room(model: _AnyModel) -> _AnyModel:
    """Return a model whose cache has room for a text. Raises InvalidInput."""
    if not model.room():
        raise InvalidInput(
            "the key/value cache may take less memory than the shortest text needs",
            "free some memory, or allow more with --cache-memory",
        )
    return model


def _head_rows(model: ov.Model) -> HeadRows | None:
    """Return rows of the head; None where the model's structure or this machine does not allow it."""
    rows = graph.head_rows(model)
    if rows is None:
        return None
    try:
        # Runs on the CPU wherever the model runs. One thread is enough for a few rows at a time.
        return HeadRows(ov.Core().compile_model(rows, "CPU", {"INFERENCE_NUM_THREADS": 1}))
    except RuntimeError:
        return None


def _early_exit(
    model: ov.Model,
    files: ModelFiles,
    options: LoadOptions,
    settings: dict[str, Any],
    limit: int,
    cache_bytes: int,
    *,
    exact_mode: bool,
) -> ExitModel:
    if options.hidden_layers or options.head_tokens is not None:
        raise ModelError("a model with an early exit returns no hidden states and keeps its whole head")
    asked = settings.get(_PRECISION)
    default = ov.Core().get_property(options.profile.device, _PRECISION)
    parts = split(model, options.exit_layer, getattr(ov.Type, asked) if asked else default)
    front, back, head = (
        compile_on_device(part, files, options, settings) for part in (parts.front, parts.back, parts.head)
    )
    return ExitModel(
        front,
        back,
        head,
        exit_layer=options.exit_layer,
        max_context=limit,
        exact=exact_mode,
        cache_bytes=cache_bytes,
    )


def _static(
    model: ov.Model,
    files: ModelFiles,
    options: LoadOptions,
    settings: dict[str, Any],
    cache_bytes: int,
    *,
    exact_mode: bool,
) -> StaticModel:
    """Compile the model at each width; an exact target at one only, since widths may round differently."""
    widths = sorted({max(width, _NARROWEST) for width in options.profile.buckets})
    decode = [width for width in widths if width <= _DECODE] or widths[:1]
    one_width = exact_mode and options.role == "target"
    limit = context_limit(files.folder, options.max_context or _STATIC_CONTEXT)
    capacity = -(-(limit + widths[-1]) // _ALIGNMENT) * _ALIGNMENT
    static = to_static(model, capacity, options.hidden_layers, options.head_tokens)

    def runner(width: int, num_rows: int) -> StaticRunner:
        compiled = compile_on_device(static.fixed(width, num_rows), files, options, settings)
        return StaticRunner(compiled, static.masks, options.hidden_layers)

    decoders = [runner(width, width) for width in (decode[-1:] if one_width else decode)]
    return StaticModel(
        decoders,
        runner(widths[-1], 1) if widths[-1] > decode[-1] else decoders[-1],
        max_context=limit,
        exact=one_width,
        hidden_layers=options.hidden_layers,
        cache_bytes=cache_bytes,
        kept_bytes=memory.kept_share(cache_bytes),
    )


def compile_on_device(
    model: ov.Model, files: ModelFiles, options: LoadOptions, settings: Mapping[str, Any]
) -> ov.CompiledModel:
    """Return a graph compiled for the profile's device. Raises DeviceError."""
    try:
        return ov.Core().compile_model(model, options.profile.device, settings)
    except RuntimeError as error:
        raise DeviceError(
            f"OpenVINO cannot load {files.name} on {options.profile.device}: {graph.first_line(error)}",
            "see: specport devices",
        ) from error
