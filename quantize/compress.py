"""Compresses the weights of an IR folder with NNCF."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from specport.quantize.prompts import CHOOSING

from specport.calibration.texts import encode
from specport.errors import ModelError
from specport.models.precision import Precision
from specport.models.progress import Progress, part
from specport.models.tokenizer import load_tokenizer

ANSWER_TOKENS = 96
# Share of an outlier that SmoothQuant moves from activations to weights; NNCF's own for language models.
SMOOTHING = 0.95


def compress(source: Path, target: Path, precision: Precision, progress: Progress) -> None:
    """Write the IR of `source`, uncompressed, with compressed weights to `target`.

    target: has the model's configuration and tokenizer already. What needs calibration text reads what the
    model itself writes behind `prompts.CHOOSING`.
    Raises ModelError where NNCF cannot do it.
    """
    import nncf
    import openvino

    texts = _texts(source, target, part(progress, 0.6, 0.7)) if precision.needs_text else []
    progress("compressing weights", 0.7)
    model = openvino.Core().read_model(source / "openvino_model.xml")
    dataset = nncf.Dataset(texts, _inputs([port.any_name for port in model.inputs])) if texts else None
    try:
        if "activations" in precision.options:
            model = _activations(model, dataset, len(texts))
        elif precision.base == "int8":
            symmetric = "sym" in precision.options
            mode = nncf.CompressWeightsMode.INT8_SYM if symmetric else nncf.CompressWeightsMode.INT8_ASYM
            # NNCF compiles a model for each weight to quantise it; in NumPy it is 4x faster, bit-identical.
            with _environment("NNCF_DISABLE_OPTIMIZED_COMPRESSION", "1"):
                model = nncf.compress_weights(model, mode=mode)
        else:
            model = nncf.compress_weights(model, dataset=dataset, **_int4(precision, len(texts)))
    except (nncf.InvalidGroupSizeError, nncf.ValidationError, nncf.ParameterNotSupportedError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ModelError(
            f"the model cannot be compressed to {precision}: {reason}", "choose another --precision"
        ) from error
    progress("saving", 0.9)
    openvino.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    del model
    gc.collect()


def _int4(precision: Precision, num_texts: int) -> dict[str, Any]:
    import nncf

    options = {*precision.options}
    sym = "asym" not in options
    return {
        "mode": nncf.CompressWeightsMode.INT4_SYM if sym else nncf.CompressWeightsMode.INT4_ASYM,
        "ratio": precision.ratio,
        "group_size": precision.group,
        "awq": "awq" in options or None,
        "scale_estimation": "scale-estimation" in options or None,
        "gptq": "gptq" in options or None,
        "subset_size": max(num_texts, 1),
        "backup_mode": nncf.BackupMode.INT8_SYM if "sym" in options else nncf.BackupMode.INT8_ASYM,
        "advanced_parameters": nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        ),
    }


def _activations(model: Any, dataset: Any, num_texts: int) -> Any:
    import nncf
    from nncf.quantization import advanced_parameters as advanced

    return nncf.quantize(
        model,
        dataset,
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=num_texts,
        fast_bias_correction=True,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=SMOOTHING)
        ),
    )


def _texts(folder: Path, tokenizer_folder: Path, progress: Progress) -> list[list[int]]:
    """Prompts and what the model answers to them, as token ids."""
    import openvino

    tokenizer = load_tokenizer(tokenizer_folder)
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU")
    fill = _inputs([port.any_name for port in compiled.inputs])
    request = compiled.create_infer_request()
    texts: list[list[int]] = []
    for number, prompt in enumerate(CHOOSING):
        progress("the model writes calibration text", number / len(CHOOSING))
        text = new = encode(tokenizer, prompt)
        request.reset_state()
        for _ in range(ANSWER_TOKENS):
            logits = request.infer(fill(new, len(text)))[0]
            new = [int(np.argmax(logits[0, -1]))]
            text = [*text, *new]
            if new[0] in tokenizer.eos_ids:
                break
        texts.append(text)
    return texts


def _inputs(names: list[str]) -> Any:
    """A function that makes a stateful model's inputs of one row's new tokens, and of how long it is then."""

    def fill(tokens: list[int], length: int | None = None) -> dict[str, Any]:
        length = len(tokens) if length is None else length
        known = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "attention_mask": np.ones((1, length), dtype=np.int64),
            "position_ids": np.arange(length - len(tokens), length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        return {name: known[name] for name in names}

    return fill


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
