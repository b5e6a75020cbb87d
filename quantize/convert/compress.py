"""Compression of an IR folder's weights with NNCF."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from specport.quantize.convert import disk, nncf_pieces, nncf_progress, package_faults
from specport.quantize.convert.openvino_core import core, signal_stack_kept
from specport.quantize.text.prompts import CHOOSING

from specport.errors import ModelError
from specport.models.precision import Precision
from specport.progress import Progress, part, silent
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import load_tokenizer

ANSWER_TOKENS = 96
# Share of an outlier that SmoothQuant moves from activations to weights (alpha of arXiv 2211.10438, at its
# usual value). NNCF's default, 0.95, gave KL 0.30 instead of 0.19 on SmolLM2-135M.
SMOOTHING = 0.5


def compress(source: Path, target: Path, precision: Precision, progress: Progress) -> None:
    """Compress the weights of the uncompressed IR in `source`, and write the model to `target`.

    target: already has the model's configuration and tokenizer.
    Methods that need calibration text get the model's own answers to `prompts.CHOOSING`.
    Raises ModelError where NNCF cannot compress the model.
    """
    package_faults.mend()
    import nncf
    import openvino

    texts = write_texts(source, target, part(progress, 0.6, 0.7)) if precision.needs_text else []
    progress("compressing weights", 0.7)
    model = core().read_model(source / "openvino_model.xml")
    dataset = nncf.Dataset(texts, inputs_of([port.any_name for port in model.inputs])) if texts else None
    model = weights_only(model, precision, dataset, len(texts), progress)
    if precision.base == "int4" and not any(_is_int4(node) for node in model.get_ops()):
        raise ModelError(
            f"the model cannot be compressed to {precision}: no layer's inputs make groups of 32 or more",
            "take int8, or int4:channel",
        )
    progress("saving", 0.9)
    with disk.writing(target):
        openvino.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    del model
    gc.collect()


@signal_stack_kept()  # NNCF makes Cores
def weights_only(
    model: Any, precision: Precision, dataset: Any = None, num_texts: int = 0, progress: Progress = silent
) -> Any:
    """Return a graph with compressed weights. dataset: calibration text, where the precision needs it.

    Raises ModelError where NNCF cannot compress the model.
    """
    package_faults.mend()
    import nncf

    try:
        if "activations" in precision.options:
            return _activations(model, dataset, num_texts, precision)
        if precision.base == "int8":
            modes = nncf.CompressWeightsMode
            mode = modes.INT8_SYM if precision.symmetric else modes.INT8_ASYM
            # NNCF compiles a model for each weight to quantise it; NumPy is 4 times as fast, with the same
            # bits.
            with _environment("NNCF_DISABLE_OPTIMIZED_COMPRESSION", "1"), nncf_pieces.by_pieces():
                return nncf.compress_weights(model, mode=mode)
        with nncf_progress.reported(part(progress, 0.7, 0.9)), nncf_pieces.by_pieces():
            return nncf.compress_weights(model, dataset=dataset, **int4_options(precision, num_texts))
    except nncf.InvalidGroupSizeError as error:
        widths = ", ".join(sorted({*re.findall(r"channel size: (\d+)", str(error))}, key=int))
        raise ModelError(
            f"the model cannot be compressed to {precision}: groups of {precision.group} do not divide its "
            f"layers' {widths} inputs",
            "take a power of two, which is made smaller where it has to be, or int4:channel",
        ) from error
    except (nncf.ValidationError, nncf.ParameterNotSupportedError, nncf.UnsupportedModelError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the model cannot be compressed to {precision}: {reason}", "choose another --precision"
        ) from error


def int4_options(precision: Precision, num_texts: int) -> dict[str, Any]:
    """Return the arguments of `nncf.compress_weights` for INT4 weights."""
    import nncf

    options = {*precision.options}
    mode, backup = nncf.CompressWeightsMode, nncf.BackupMode
    # Where the group does not divide a layer's inputs, NNCF takes the largest power of two that does. For a
    # group that is no power of two this can be larger than what was asked for, so it is an error then.
    fits = precision.group & (precision.group - 1) == 0
    fallback = nncf.GroupSizeFallbackMode.ADJUST if fits else nncf.GroupSizeFallbackMode.ERROR
    return {
        "mode": mode.INT4_ASYM if "asym" in options else mode.INT4_SYM,
        "ratio": precision.ratio,
        "group_size": precision.group,
        "awq": "awq" in options or None,
        "scale_estimation": "scale-estimation" in options or None,
        "gptq": "gptq" in options or None,
        "subset_size": max(num_texts, 1),
        "backup_mode": backup.INT8_SYM if precision.symmetric else backup.INT8_ASYM,
        "advanced_parameters": nncf.AdvancedCompressionParameters(group_size_fallback_mode=fallback),
    }


def _is_int4(node: Any) -> bool:
    return node.get_type_name() == "Constant" and node.get_element_type().to_string() in ("i4", "u4")


def _activations(model: Any, dataset: Any, num_texts: int, precision: Precision) -> Any:
    """Return the model with weights and activations quantised to INT8."""
    import nncf
    from nncf.quantization import advanced_parameters as advanced

    preset = nncf.QuantizationPreset
    return nncf.quantize(
        model,
        dataset,
        preset=preset.PERFORMANCE if precision.symmetric else preset.MIXED,  # of activations; weights never
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=num_texts,
        fast_bias_correction=True,
        # No kernel multiplies cached keys in int8: rounding them would cost accuracy and save nothing.
        ignored_scope=nncf.IgnoredScope(types=["ScaledDotProductAttention"]),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=SMOOTHING)
        ),
    )


def write_texts(folder: Path, tokenizer_folder: Path, progress: Progress) -> list[list[int]]:
    """Return prompts with the greedy answers of the IR in `folder`, as token ids."""
    tokenizer = load_tokenizer(tokenizer_folder)
    compiled = core().compile_model(folder / "openvino_model.xml", "CPU")
    fill = inputs_of([port.any_name for port in compiled.inputs])
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


def inputs_of(names: list[str]) -> Any:
    """Return a function that fills a stateful model's inputs for one row.

    The function takes the row's new tokens and its length with them (None: no earlier tokens).
    """

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
    """Set an environment variable while the context lasts."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
