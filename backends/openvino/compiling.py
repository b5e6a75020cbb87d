"""Compile the graph of an IR folder on a device, as the model that its profile asks for.

A profile with step widths uses the model of fixed shapes (`static/model.py`), all others the paged model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import openvino as ov
from specport.backends.openvino import whisper
from specport.backends.openvino.context_limit import context_limit
from specport.backends.openvino.graph import layers
from specport.backends.openvino.graph import surgery as graph
from specport.backends.openvino.graph.halves import cut, runs_of
from specport.backends.openvino.graph.merge import PAIRS, TRIPLES, merge_products
from specport.backends.openvino.graph.recurrent import has_recurrent_state
from specport.backends.openvino.hidden_head import load_head
from specport.backends.openvino.mtp import load_mtp
from specport.backends.openvino.paged.early_exit import ExitModel
from specport.backends.openvino.paged.hybrid import HybridModel
from specport.backends.openvino.paged.model import PagedModel
from specport.backends.openvino.paged.runs import CompiledRuns
from specport.backends.openvino.pipo.graph import install_pairs
from specport.backends.openvino.pipo.model import PagedPairs
from specport.backends.openvino.probe import computes_on
from specport.backends.openvino.request import HeadRows, Request
from specport.backends.openvino.static.graph import to_static
from specport.backends.openvino.static.model import StaticModel
from specport.backends.openvino.static.runner import StaticRunner
from specport.quantize.convert.openvino_core import core

from specport.errors import DeviceError, InvalidInput, ModelError
from specport.models.folder_checks import IR_BIN
from specport.models.json_file import read_json
from specport.models.kinds.whisper import is_whisper
from specport.models.precision import parse
from specport.runtime.caches import memory
from specport.runtime.devices.profiles import usable_cores
from specport.runtime.devices.registry import Loaded, LoadOptions, first_step, settings_key

if TYPE_CHECKING:
    from specport.models.source import ModelFiles

STATIC_CONTEXT = 1024  # with fixed shapes every step reads the whole context
PRECISION = "INFERENCE_PRECISION_HINT"
_NARROWEST = 2  # one token uses another attention kernel, which is wrong in bf16 on the CPU (2026.4)
_DECODE = 64  # wider steps are for prompts
_ALIGNMENT = 64  # the number of rows of a static cache is a multiple of it


@dataclass(frozen=True)
class Job:
    """Hold what is to be loaded and how.

    config:  the model's config.json, which is read once.
    encoder: properties of a speech model's encoder.
    """

    files: ModelFiles
    options: LoadOptions
    config: Mapping[str, Any]
    encoder: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, files: ModelFiles, options: LoadOptions) -> Job:
        """Raises ModelError where config.json is damaged."""
        return cls(files, options, read_json(files.folder / "config.json"))

    @property
    def on_cpu(self) -> bool:
        return computes_on(self.options.profile) == "CPU"

    @property
    def threads(self) -> int:
        cores = usable_cores()  # the runtime has no more threads than these
        return min(self.options.threads or cores, cores)

    def context_limit(self, default: int | None = None) -> int:
        """Return the longest sequence in tokens; `default` bounds it where the user gives no limit."""
        return context_limit(self.config, self.options.max_context or default)


def compiled(job: Job, properties: Mapping[str, Any], *, exact_mode: bool) -> PagedModel | StaticModel:
    """Return the model, ready to step. Raises ModelError, DeviceError and InvalidInput (`load.load`)."""
    files, options = job.files, job.options
    settings = _settings(job, properties)
    # Before the weights are read: mapped weights fill free memory page by page, and kernels repack them.
    given, weights = options.cache_bytes, (files.folder / IR_BIN).stat().st_size
    cache_bytes = memory.default_share(options.role, weights) if given is None else given
    if is_whisper(job.config):
        compile_ = partial(compile_on_device, job=job, settings=settings)
        return _with_room(
            whisper.load_decoder(files, options, compile_, cache_bytes, exact=exact_mode, on_cpu=job.on_cpu)
        )
    model = graph.read_model(files.folder)
    if hybrid := has_recurrent_state(model):
        _check_recurrent(job)
    hidden_head = load_head(model, options)
    if options.pairs is not None:
        _check_pairs(job, hybrid)
    if options.profile.buckets:
        static = _static(model, job, settings, cache_bytes, exact_mode=exact_mode)
        static.hidden_head = hidden_head
        return _with_room(static)
    limit = job.context_limit()
    if options.exit_layer:
        parts = _early_exit(model, job, settings, limit, cache_bytes, exact_mode=exact_mode)
        return _with_room(parts)
    if options.skipped_layers:
        return _with_room(_with_slim(model, job, settings, limit, cache_bytes, exact_mode=exact_mode))
    mtp = load_mtp(model, options, limit, partial(compile_on_device, job=job, settings=settings))
    if job.on_cpu:
        merge_products(model, PAIRS if options.role == "draft" else TRIPLES)
    head_rows = None if options.head_tokens is None else _head_rows(model)  # before the graph is cut below
    paged = graph.to_paged(
        model,
        options.hidden_layers,
        options.head_tokens,
        head_input=head_rows is not None,
        # In exact mode each path of a tree is run as a chain. Only the CPU's kernels do this correctly.
        looks_ahead=not exact_mode and not hybrid and job.on_cpu,
        attention_rows=exact_mode and job.on_cpu,
    )
    if options.pairs is not None:
        install_pairs(paged, options.pairs, rounded=parse(files.precision).base.startswith("int"))
    request = Request(compile_on_device(paged, job, settings))
    make: Callable[..., PagedModel] = PagedModel
    if hybrid:
        make = partial(HybridModel, goes_back=options.role == "draft")
    elif options.pairs is not None:
        make = partial(PagedPairs, pairs=options.pairs)
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


def loaded(model: PagedModel | StaticModel, notes: tuple[str, ...], key: str, job: Job) -> Loaded:
    """Return a model with what its users are told, and the key of its measurements."""
    encoder = partial(compile_on_device, job=job, settings=_settings(job, job.encoder))
    # The runtime repacks weights at the first step: 1.9 s for a draft of 0.5B in INT4, 2 cores.
    prepare = partial(first_step, whisper.unconditioned(model))
    speech = whisper.speech(model, job.files, encoder)
    return Loaded(model, notes, key, job.options.head_tokens, prepare=prepare, speech=speech)


def _settings(job: Job, properties: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **properties}
    if job.options.threads is not None and job.on_cpu:
        settings["INFERENCE_NUM_THREADS"] = job.options.threads
    return settings


def key_of(job: Job, properties: Mapping[str, Any], *, padded: bool, hidden: bool = True) -> str:
    """Return a key of everything that decides which kernels run; measurements are stored under it.

    hidden: False = without the outputs of hidden states. They may decide how kernels are fused, but hardly
            what a step costs.
    """
    files, profile = job.files, job.options.profile
    options = job.options if hidden else replace(job.options, hidden_layers=())
    static = {"buckets": profile.buckets, "context": options.max_context} if profile.buckets else {}
    cross = {"cross": "products"} if job.on_cpu and is_whisper(job.config) else {}  # `graph/cross.py`
    facts: dict[str, Any] = {
        "runtime": ov.get_version(),
        "processor": core().get_property(computes_on(profile), "FULL_DEVICE_NAME"),
        "weights": files.fingerprint,
        "threads": job.threads,
        "padded": padded,
        **static,
        **cross,
        **properties,
    }
    return settings_key(options, **facts)


def _check_pairs(job: Job, hybrid: bool) -> None:
    """Raise ModelError where pairs of tokens cannot be read as one."""
    if job.options.profile.buckets or hybrid:
        what = "recurrent layers" if hybrid else f"the fixed shapes of {job.options.profile.name}"
        raise ModelError(f"pair models do not run with {what}", "choose another --device, such as the CPU")


def _check_recurrent(job: Job) -> None:
    """Raise ModelError where a model with recurrent states is to do what it cannot."""
    files, options = job.files, job.options
    if options.profile.buckets:
        raise ModelError(
            f"{files.name} has recurrent layers, which have no fixed shapes for {options.profile.name}",
            "choose another --device, such as the CPU",
        )
    if options.exit_layer:
        raise ModelError(
            f"{files.name} has recurrent layers, which cannot exit early", "choose another --draft"
        )
    if options.skipped_layers:
        raise ModelError(f"{files.name} has recurrent layers: it has no slim verifier", "leave out --verify")


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
        return HeadRows(core().compile_model(rows, "CPU", {"INFERENCE_NUM_THREADS": 1}))
    except RuntimeError:
        return None


def _early_exit(
    model: ov.Model,
    job: Job,
    settings: dict[str, Any],
    limit: int,
    cache_bytes: int,
    *,
    exact_mode: bool,
) -> ExitModel:
    options = job.options
    if options.hidden_layers or options.head_tokens is not None:
        raise ModelError("a model with an early exit returns no hidden states and keeps its whole head")
    parts = cut(model, [options.exit_layer], _element(job, settings))
    front, back, head = (compile_on_device(part, job, settings) for part in (*parts.runs, parts.head))
    return ExitModel(
        front,
        back,
        head,
        exit_layer=options.exit_layer,
        max_context=limit,
        exact=exact_mode,
        cache_bytes=cache_bytes,
    )


def _with_slim(
    model: ov.Model,
    job: Job,
    settings: dict[str, Any],
    limit: int,
    cache_bytes: int,
    *,
    exact_mode: bool,
) -> PagedModel:
    """Compile the model in runs of layers, with its slim verifier."""
    options = job.options
    if options.hidden_layers or options.head_tokens is not None:
        raise ModelError("a model with a slim verifier returns no hidden states and keeps its whole head")
    total = len(layers.find(model))
    cuts, kept = runs_of(total, options.skipped_layers)
    if job.on_cpu:
        merge_products(model, TRIPLES)
    parts = cut(model, cuts, _element(job, settings))
    runs = tuple(compile_on_device(run, job, settings) for run in parts.runs)
    compiled = CompiledRuns(runs, compile_on_device(parts.head, job, settings), kept)
    slim_bytes = memory.slim_share(cache_bytes, total, len(options.skipped_layers))
    return compiled.model(cache_bytes - slim_bytes, slim_bytes, max_context=limit, exact=exact_mode)


def _element(job: Job, settings: Mapping[str, Any]) -> ov.Type:
    """Return the type that the runtime computes in: the streams between parts of a model must have it."""
    asked = settings.get(PRECISION)
    found: ov.Type = (
        getattr(ov.Type, asked) if asked else core().get_property(job.options.profile.device, PRECISION)
    )
    return found


def _static(
    model: ov.Model,
    job: Job,
    settings: dict[str, Any],
    cache_bytes: int,
    *,
    exact_mode: bool,
) -> StaticModel:
    """Compile the model at each width; an exact target at one only, since widths may round differently."""
    options = job.options
    widths = sorted({max(width, _NARROWEST) for width in options.profile.buckets})
    decode = [width for width in widths if width <= _DECODE] or widths[:1]
    one_width = exact_mode and options.role == "target"
    limit = job.context_limit(STATIC_CONTEXT)
    capacity = -(-(limit + widths[-1]) // _ALIGNMENT) * _ALIGNMENT
    static = to_static(model, capacity, options.hidden_layers, options.head_tokens)

    def runner(width: int, num_rows: int) -> StaticRunner:
        compiled = compile_on_device(static.fixed(width, num_rows), job, settings)
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


def compile_on_device(model: ov.Model, job: Job, settings: Mapping[str, Any]) -> ov.CompiledModel:
    """Return a graph compiled for the profile's device. Raises DeviceError."""
    try:
        return core().compile_model(model, job.options.profile.device, settings)
    except RuntimeError as error:
        device = job.options.profile.device
        raise DeviceError(
            f"OpenVINO cannot load {job.files.name} on {device}: {graph.first_line(error)}",
            "see: specport devices",
        ) from error
