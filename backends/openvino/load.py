"""Loads an IR folder on a device: properties, compilation, and the check that exact is exact."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from specport.backends.openvino import graph
from specport.backends.openvino.model import PagedModel

from specport import exact
from specport.errors import DeviceError, ModelError
from specport.models.cache import cache_root
from specport.models.tokenizer import read_json
from specport.registry import Loaded, LoadOptions

if TYPE_CHECKING:
    from specport.models.source import ModelFiles

_DEFAULT_CONTEXT = 2048  # for a config.json that names no limit


def load(files: ModelFiles, options: LoadOptions) -> Loaded:
    """The model in `files.folder`, ready to step. Raises ModelError or DeviceError.

    An exact target is checked once for each runtime, processor, model and settings; where the default
    kernels turn out to round differently for different splits, it is loaded again in full f32.
    """
    profile = options.profile
    if files.precision == "fp32":  # whoever asks for these weights wants the arithmetic as well
        profile = replace(profile, **dict.fromkeys(("exact", "fast", "draft"), profile.fallback))
    if options.role == "draft":
        # Padded like an exact target, though nothing depends on its rounding: one or two new tokens
        # are then the same shape, and a change of shape costs more than the second token.
        model = _compile(files, options, profile.draft, exact_mode=True)
        key = _key(files, options, profile.draft, padded=True)
        return Loaded(model, key=key, head_tokens=options.head_tokens)
    if not options.exact:
        model = _compile(files, options, profile.fast, exact_mode=False)
        key = _key(files, options, profile.fast, padded=False)
        return Loaded(model, key=key, head_tokens=options.head_tokens)
    model = _compile(files, options, profile.exact, exact_mode=True)
    key = _key(files, options, profile.exact, padded=True)
    if _checked(model, key):
        return Loaded(model, key=key, head_tokens=options.head_tokens)
    del model  # before the next one is compiled: two copies of a large model need not fit
    model = _compile(files, options, profile.fallback, exact_mode=True)
    key = _key(files, options, profile.fallback, padded=True)
    if _checked(model, key):
        note = "exact mode runs in f32 here: the default kernels are not split-invariant"
        return Loaded(model, (note,), key, options.head_tokens)
    raise DeviceError(
        "no exact mode on this device: logits depend on how tokens are split over steps, even in f32",
        "use --fast",
    )


def _key(files: ModelFiles, options: LoadOptions, properties: Mapping[str, Any], *, padded: bool) -> str:
    """Everything that decides which kernels run: what was found out about them is kept under it."""
    device = options.profile.device
    facts: dict[str, Any] = {
        "runtime": ov.get_version(),
        "processor": ov.Core().get_property(device, "FULL_DEVICE_NAME"),
        "weights": files.fingerprint,
        "threads": options.threads or os.cpu_count(),
        "head": options.head_tokens and zlib.crc32(np.asarray(options.head_tokens, np.int64).tobytes()),
        "hidden": options.hidden_layers,
        "padded": padded,
        **properties,
    }
    text = "\n".join(f"{name}={value}" for name, value in sorted(facts.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _checked(model: PagedModel, key: str) -> bool:
    answers = exact.Answers(cache_root() / "exact.json")
    answer = answers.get(key)
    if answer is None:
        answer = exact.is_invariant(model)
        answers.put(key, answer)
    return answer


def _compile(
    files: ModelFiles, options: LoadOptions, properties: Mapping[str, Any], *, exact_mode: bool
) -> PagedModel:
    config = read_json(files.folder / "config.json")
    limit = _context_limit(config)
    if options.max_context is not None:
        limit = min(limit, options.max_context)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **properties}
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    paged = graph.to_paged(graph.read_model(files.folder), options.hidden_layers, options.head_tokens)
    try:
        compiled = ov.Core().compile_model(paged, options.profile.device, settings)
    except RuntimeError as error:
        raise DeviceError(
            f"OpenVINO cannot load {files.name} on {options.profile.device}: {graph.first_line(error)}",
            "see: specport devices",
        ) from error
    return PagedModel(compiled, max_context=limit, exact=exact_mode, hidden_layers=options.hidden_layers)


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
