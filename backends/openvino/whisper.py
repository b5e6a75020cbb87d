"""Load a Whisper model: the encoder, and the decoder as a model that takes the encoder's output."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.graph import surgery as graph
from specport.backends.openvino.graph.cross import with_products, with_turned_keys
from specport.backends.openvino.paged.conditioned import ConditionedModel
from specport.backends.openvino.request import Request
from specport.quantize.convert.openvino_core import core

from specport.core.ports import Model, conditioned
from specport.errors import DeviceError, ModelError
from specport.models.kinds.whisper import CROSS_XML, ENCODER_XML, find_encoder_key, read_shape
from specport.models.source import ModelFiles
from specport.runtime.devices.registry import LoadOptions, Speech

Compile = Callable[[ov.Model], ov.CompiledModel]
_READABLE = "remove it with specport models rm, and load it again"


class WhisperEncoder:
    """Run the encoder. Compiled at the first call: a draft may share its target's."""

    def __init__(self, files: ModelFiles, compile_: Compile) -> None:
        self._files, self._compile = files, compile_

    @cached_property
    def _request(self) -> Request:
        return Request(self._compile(_read(self._files, ENCODER_XML)))

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the states [frames, width] of features [mels, 2 frames].

        One window at a time: more would round differently.
        """
        self._request({"features": np.asarray(features[None], np.float32)})
        states: NDArray[np.float32] = self._request.output("states").data[0].copy()
        return states


def load_decoder(
    files: ModelFiles, options: LoadOptions, compile_: Compile, cache_bytes: int, *, exact: bool, on_cpu: bool
) -> ConditionedModel:
    """Return the decoder, ready to step. Raises ModelError or DeviceError."""
    if options.profile.buckets:
        raise DeviceError(
            f"speech models have no fixed shapes for {options.profile.name}", "choose another --device"
        )
    if options.exit_layer or options.hidden_layers:
        raise ModelError("a speech model has no early exit and no hidden states")
    shape = read_shape(files.folder)
    model = graph.read_model(files.folder)
    paged = graph.to_paged(model, head_tokens=options.head_tokens, attention_rows=exact and on_cpu)
    keys = _read(files, CROSS_XML)
    if on_cpu:
        with_products(paged)
        with_turned_keys(keys)
    return ConditionedModel(
        Request(compile_(paged)),
        cross=Request(compile_(keys)),
        turned_keys=on_cpu,
        max_context=min(shape.context, options.max_context or shape.context),
        exact=exact,
        cache_bytes=cache_bytes,
    )


def speech(model: Model, files: ModelFiles, compile_: Compile) -> Speech | None:
    """Return what a speech model has beside its decoder; None for a text model."""
    if not isinstance(model, ConditionedModel):
        return None
    return Speech(WhisperEncoder(files, compile_), model.attention, find_encoder_key(files.folder))


def unconditioned(model: Model) -> Model:
    """Return the model as one that needs no encoder's output: it hears noise."""
    if not isinstance(model, ConditionedModel):
        return model
    noise = np.random.default_rng(0).normal(size=model.windows.input_shape).astype(np.float32)
    return conditioned(model, lambda _: noise)


def _read(files: ModelFiles, name: str) -> Any:
    path = files.folder / name
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise ModelError(
            f"{path} cannot be read as OpenVINO IR: {graph.first_line(error)}", _READABLE
        ) from error
