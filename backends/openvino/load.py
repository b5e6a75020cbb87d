"""Loads an IR folder on a device: properties, compilation, and the check that exact is exact.

A profile with step widths gets the model of fixed shapes (`static/model.py`), any other the paged one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openvino as ov
from specport.backends.openvino.graph import surgery as graph
from specport.backends.openvino.graph.halves import split
from specport.backends.openvino.graph.merge import PAIRS, TRIPLES, merge_products
from specport.backends.openvino.paged.early_exit import ExitModel
from specport.backends.openvino.paged.model import PagedModel
from specport.backends.openvino.probe import computes_on
from specport.backends.openvino.request import HeadRows, Request
from specport.backends.openvino.static.graph import to_static
from specport.backends.openvino.static.model import StaticModel
from specport.backends.openvino.static.runner import StaticRunner

from specport.errors import DeviceError, ModelError
from specport.runtime import numerics as exact
from specport.runtime.profiles import Profile, cpu_flags
from specport.runtime.registry import Loaded, LoadOptions, settings_key
from specport.text.tokenizer import read_json

if TYPE_CHECKING:
    from specport.models.source import ModelFiles

_DEFAULT_CONTEXT = 2048  # for a config.json that names no limit
_STATIC_CONTEXT = 1024  # with fixed shapes every step pays for the whole context, full or not
_NARROWEST = 2  # a lone token takes another attention kernel, which on the CPU is wrong in bf16 (2026.4)
_DECODE = 64  # wider steps are for prompts
_PRECISION = "INFERENCE_PRECISION_HINT"
_ALIGNMENT = 64  # the rows of a static cache are a multiple


def load(files: ModelFiles, options: LoadOptions) -> Loaded:
    """The model in `files.folder`, ready to step. Raises ModelError or DeviceError.

    An exact target is checked once for each runtime, processor, model and settings; where the default
    kernels turn out to round differently for different splits, it is loaded again in full f32.
    """
    profile = _for_processor(options, files.precision)
    notes = _notes(files, options)
    if files.precision == "fp32" and profile.fallback:
        # Whoever asks for these weights wants the arithmetic as well.
        f32 = profile.fallback
        profile = replace(profile, exact=f32, fast=f32, draft=f32)
    if options.role == "draft":
        # Padded like an exact target, though nothing depends on its rounding: one or two new tokens
        # are then the same shape, and a change of shape costs more than the second token.
        model = _compile(files, options, profile.draft, exact_mode=True)
        key = _key(files, options, profile.draft, padded=True)
        return Loaded(model, notes, key, options.head_tokens)
    if not options.exact:
        model = _compile(files, options, profile.fast, exact_mode=False)
        key = _key(files, options, profile.fast, padded=False)
        return Loaded(model, notes, key, options.head_tokens)
    if found := _exact(files, options, profile.exact, notes):
        return found
    if profile.fallback:
        note = "exact mode runs in f32 here: the default kernels are not split-invariant"
        if found := _exact(files, options, profile.fallback, (*notes, note)):
            return found
    raise DeviceError(
        "no exact mode on this device: logits depend on how tokens are split over steps"
        + (", even in f32" if profile.fallback else ""),
        "use --fast",
    )


def _exact(
    files: ModelFiles, options: LoadOptions, properties: Mapping[str, Any], notes: tuple[str, ...]
) -> Loaded | None:
    """The model with these properties, if its logits do not depend on the split."""
    model = _compile(files, options, properties, exact_mode=True)
    key = _key(files, options, properties, padded=True)
    if not exact.checked(model, key):
        return None
    if isinstance(model, PagedModel) and not exact.checked_wide(model, key):
        model.widest = exact.NARROW
    return Loaded(model, notes, key, options.head_tokens)


def _for_processor(options: LoadOptions, precision: str) -> Profile:
    """The profile with what AMX needs, where it is there."""
    profile = options.profile
    if computes_on(profile) != "CPU" or "amx_bf16" not in cpu_flags():
        return profile
    extra = profile.amx
    if precision.startswith(("fp", "bf")):  # of other IR, most is INT8 or INT4
        if _threads(options) != 1:
            return profile
        # The bf16 kernel of an MLP (LLMMLP) shares its work among pairs of threads: with one, OpenVINO
        # 2026.4 divides by zero, and the process is gone.
        extra = {_PRECISION: "f32"}
    exact, fast, draft = ({**table, **extra} for table in (profile.exact, profile.fast, profile.draft))
    return replace(profile, exact=exact, fast=fast, draft=draft)


def _notes(files: ModelFiles, options: LoadOptions) -> tuple[str, ...]:
    """What the user should know of the target's device; a draft on it has nothing to add."""
    if options.role == "draft":
        return ()
    profile = options.profile
    notes = [profile.emulation] if profile.emulation else []
    if profile.buckets and options.max_context is None and _limit(files, None) > _STATIC_CONTEXT:
        notes.append(
            f"the context is {_STATIC_CONTEXT} tokens on {profile.name}, where each step pays for all of it: "
            "--max-context sets another length"
        )
    if options.threads is not None and computes_on(profile) != "CPU":
        notes.append(f"{profile.device} takes no number of threads: --threads is left out")
    return tuple(notes)


def _threads(options: LoadOptions) -> int | None:
    return options.threads or os.cpu_count()


def _key(files: ModelFiles, options: LoadOptions, properties: Mapping[str, Any], *, padded: bool) -> str:
    """Everything that decides which kernels run: what was found out about them is kept under it."""
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
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **properties}
    if options.threads is not None and computes_on(options.profile) == "CPU":
        settings["INFERENCE_NUM_THREADS"] = options.threads
    model = graph.read_model(files.folder)
    if options.profile.buckets:
        return _static(model, files, options, settings, exact_mode=exact_mode)
    limit = _limit(files, options.max_context)
    if options.exit_layer:
        return _early_exit(model, files, options, settings, limit, exact_mode=exact_mode)
    if computes_on(options.profile) == "CPU":
        merge_products(model, PAIRS if options.role == "draft" else TRIPLES)
    head_rows = None if options.head_tokens is None else _head_rows(model)  # before the surgery below
    paged = graph.to_paged(
        model, options.hidden_layers, options.head_tokens, head_input=head_rows is not None
    )
    request = Request(_on_device(paged, files, options, settings))
    return PagedModel(
        request,
        max_context=limit,
        exact=exact_mode,
        hidden_layers=options.hidden_layers,
        head_rows=head_rows,
    )


def _head_rows(model: ov.Model) -> HeadRows | None:
    """None where the model's form or this machine does not allow it: the draft then does without."""
    rows = graph.head_rows(model)
    if rows is None:
        return None
    try:
        # A few rows at a time, wherever the model itself runs: one thread is enough.
        return HeadRows(ov.Core().compile_model(rows, "CPU", {"INFERENCE_NUM_THREADS": 1}))
    except RuntimeError:
        return None


def _early_exit(
    model: ov.Model,
    files: ModelFiles,
    options: LoadOptions,
    settings: dict[str, Any],
    limit: int,
    *,
    exact_mode: bool,
) -> ExitModel:
    if options.hidden_layers or options.head_tokens is not None:
        raise ModelError("a model that exits early gives no hidden states and keeps its whole head")
    asked = settings.get(_PRECISION)
    default = ov.Core().get_property(options.profile.device, _PRECISION)
    parts = split(model, options.exit_layer, getattr(ov.Type, asked) if asked else default)
    front, back, head = (
        _on_device(part, files, options, settings) for part in (parts.front, parts.back, parts.head)
    )
    return ExitModel(front, back, head, exit_layer=options.exit_layer, max_context=limit, exact=exact_mode)


def _static(
    model: ov.Model, files: ModelFiles, options: LoadOptions, settings: dict[str, Any], *, exact_mode: bool
) -> StaticModel:
    """The model at each width. An exact target decodes at one only, since widths may round differently."""
    widths = sorted({max(width, _NARROWEST) for width in options.profile.buckets})
    decode = [width for width in widths if width <= _DECODE] or widths[:1]
    one_width = exact_mode and options.role == "target"
    limit = _limit(files, options.max_context or _STATIC_CONTEXT)
    capacity = -(-(limit + widths[-1]) // _ALIGNMENT) * _ALIGNMENT
    static = to_static(model, capacity, options.hidden_layers, options.head_tokens)

    def runner(width: int, num_rows: int) -> StaticRunner:
        compiled = _on_device(static.fixed(width, num_rows), files, options, settings)
        return StaticRunner(compiled, static.masks, options.hidden_layers)

    decoders = [runner(width, width) for width in (decode[-1:] if one_width else decode)]
    return StaticModel(
        decoders,
        runner(widths[-1], 1) if widths[-1] > decode[-1] else decoders[-1],
        max_context=limit,
        exact=one_width,
        hidden_layers=options.hidden_layers,
    )


def _on_device(
    model: ov.Model, files: ModelFiles, options: LoadOptions, settings: Mapping[str, Any]
) -> ov.CompiledModel:
    try:
        return ov.Core().compile_model(model, options.profile.device, settings)
    except RuntimeError as error:
        raise DeviceError(
            f"OpenVINO cannot load {files.name} on {options.profile.device}: {graph.first_line(error)}",
            "see: specport devices",
        ) from error


def _limit(files: ModelFiles, most: int | None) -> int:
    limit = _context_limit(read_json(files.folder / "config.json"))
    return limit if most is None else min(limit, most)


def _context_limit(config: Mapping[str, Any]) -> int:
    """The model's own limit; multimodal configs keep it one level down."""
    text = config.get("text_config")
    for table in (config, text if isinstance(text, dict) else {}):
        value = table.get("max_position_embeddings")
        if isinstance(value, int) and value > 1:
            return value
    if config and not isinstance(config.get("max_position_embeddings", 0), int):
        raise ModelError("config.json: max_position_embeddings is not a number")
    return _DEFAULT_CONTEXT
