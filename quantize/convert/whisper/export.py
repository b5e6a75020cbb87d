"""Conversion of a Whisper model: to OpenVINO IR with compressed weights, or to a Hugging Face folder."""

from __future__ import annotations

import gc
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from specport.quantize.convert import compress, disk
from specport.quantize.convert.whisper import graph, source, vocabulary

from specport.errors import ModelError
from specport.models import precision as precisions
from specport.models import tensors
from specport.models.atomic import write_json
from specport.models.folder_checks import IR_XML
from specport.models.json_file import TOKENIZER_FILE
from specport.models.kinds.whisper import CROSS_XML, ENCODER_XML, FACTS, encoder_key, noted
from specport.progress import Progress, silent

WEIGHTS = "model.safetensors"
_COPIED = ("tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json")


def export(folder: Path, target: Path, precision: str, *, progress: Progress = silent) -> dict[str, str]:
    """Write the graphs of encoder, cross-attention and decoder, configuration and tokenizer into `target`.

    INT4 is for the decoder; the encoder and cross-attention are INT8 then. Returns package versions.
    Raises ModelError.
    """
    wanted = precisions.parse(precision)
    if wanted.needs_text:
        raise ModelError(f"a speech model cannot be compressed to {wanted}", "take int8, or int4")
    progress("reading weights", 0.1)
    found = source.read(folder)
    number = sum(weight.size for weight in found.weights.values())
    disk.check_room(target, number, 0, wanted)  # the graphs are compressed in memory
    _write_files(folder, target, found)
    try:
        import openvino
    except ImportError as error:
        raise ModelError(
            f"converting needs more packages: {error}", "pip install 'specport[openvino]'"
        ) from error
    integers = wanted.base.startswith("int")
    gentle = precisions.parse("int8:sym" if wanted.symmetric else "int8") if integers else wanted
    parts = (
        (ENCODER_XML, graph.encoder, gentle),
        (CROSS_XML, graph.cross, gentle),
        (IR_XML, graph.decoder, wanted),
    )
    for i, (name, build, kind) in enumerate(parts):
        progress("converting to OpenVINO", 0.2 + 0.25 * i)
        model: Any = build(found.weights, found.shape)
        if integers:
            model = compress.weights_only(model, kind)
        with disk.writing(target):
            openvino.save_model(model, target / name, compress_to_fp16=wanted.base == "fp16")
        del model
        gc.collect()
    packages = ("openvino", "nncf") if integers else ("openvino",)
    return {package: metadata.version(package) for package in packages}


def save(folder: Path, target: Path, precision: str, *, progress: Progress = silent) -> dict[str, str]:
    """Write the model as a Hugging Face folder with safetensors. Raises ModelError.

    precision: "fp32" or "fp16"; "bf16" is written as fp32 and rounded when it is loaded.
    """
    progress("reading weights", 0.1)
    found = source.read(folder)
    dtype = np.float16 if precision == "fp16" else np.float32
    progress("writing weights", 0.6)
    write(folder, target, found, dtype)
    return {"numpy": metadata.version("numpy")}


def write(folder: Path, target: Path, found: source.WhisperSource, dtype: Any = None) -> None:
    """Write a model as a Hugging Face folder. folder: has its tokenizer. dtype: None = as the weights are.

    Raises OSError.
    """
    arrays = {name: array.astype(dtype or array.dtype, copy=False) for name, array in found.weights.items()}
    tensors.write(target / WEIGHTS, arrays)
    _write_files(folder, target, found)


def _write_files(folder: Path, target: Path, found: source.WhisperSource) -> None:
    if (folder / TOKENIZER_FILE).is_file():
        shutil.copyfile(folder / TOKENIZER_FILE, target / TOKENIZER_FILE)
    else:
        vocabulary.write(folder, target)
    for name in _COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    write_json(target / "config.json", found.config, indent=2)
    if found.generation:
        write_json(target / "generation_config.json", found.generation, indent=2)
    write_json(target / FACTS, noted(encoder_key(found.weights), found.head_tokens, found.parallel))
