"""Conversion of a GGUF file or a Hugging Face folder to OpenVINO IR with compressed weights.

transformers reads the weights (GGUF is dequantised exactly), optimum-intel traces the model to a stateful IR,
NNCF compresses it. `runtime/conversion.py` runs it in a process of its own; `export` may also be called
directly.
"""

from __future__ import annotations

import gc
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from specport.quantize.convert import (
    compress,
    config_file,
    diffusion,
    disk,
    package_faults,
    refusals,
    whole_model,
)
from specport.quantize.convert.from_gguf import config as gguf_config
from specport.quantize.convert.from_gguf import weights as gguf_weights
from specport.quantize.convert.whisper import export as whisper_export

from specport.errors import ModelError
from specport.models import precision as precisions
from specport.models.atomic import write_json
from specport.models.gguf import split as gguf_split
from specport.models.json_file import read_json
from specport.models.kinds.diffusion import is_diffusion
from specport.models.kinds.whisper import speech_form
from specport.progress import Progress, silent
from specport.text import gguf_tokenizer
from specport.text.gguf_vocabulary import Vocabulary

PACKAGES = ("openvino", "nncf", "optimum-intel", "transformers", "torch")
COPIED = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja")
LIFTED = ("gemma", "gemma2", "gemma3_text", "gemma3n_text")
# Models above this many bytes in float32 are traced with 16-bit weights, to save memory and disk.
FLOAT32_BYTES = 4 << 30
# Kinds of hybrid decoders -> kinds with the same inputs and caches where all attention is full.
_PLAIN = {"qwen3_5_text": "qwen3", "qwen3_5_moe_text": "qwen3_moe", "qwen3_next": "qwen3_moe"}


def export(
    source: str | Path,
    target: str | Path,
    precision: str,
    *,
    progress: Progress = silent,
    trust_remote_code: bool = False,
) -> dict[str, str]:
    """Write openvino_model.xml/.bin, config, generation config and tokenizer into `target`.

    precision: as in `specport.models.precision`. Returns package versions. Raises ModelError.
    """
    source, target = Path(source), Path(target)
    if source.is_dir() and speech_form(source):
        return whisper_export.export(source, target, precision, progress=progress)
    wanted = precisions.parse(precision)
    progress("loading the converter", 0.0)
    package_faults.mend()
    try:
        from optimum.exporters.openvino import export_from_model
        from optimum.intel import OVConfig
    except ImportError as error:
        raise ModelError(
            f"converting needs more packages: {error}", "pip install 'specport[openvino]'"
        ) from error
    progress("reading weights", 0.15)
    diffusion.check_graph(read_json(source / "config.json") if source.is_dir() else {}, source)
    model = load_source(source, target, trust_remote_code)
    _check_config(model.config, source)
    _lift_limit(model.config.model_type)
    _as_plain(model)
    weights = [*model.parameters()]
    stored = sum(weight.numel() * weight.element_size() for weight in weights)
    disk.check_room(target, sum(weight.numel() for weight in weights), stored, wanted)
    progress("converting to OpenVINO", 0.4)
    draft = target / "uncompressed"
    compressed = wanted.base.startswith("int")
    with disk.writing(target), refusals.explained(model.config.model_type):
        export_from_model(
            model,
            draft if compressed else target,
            task="text-generation-with-past",
            ov_config=OVConfig(dtype="fp32" if compressed else wanted.base),
            stateful=True,
            patch_16bit_model=_is_16bit(model),
            trust_remote_code=trust_remote_code,
        )
    del model, weights
    gc.collect()
    for path in draft.glob("*.json"):
        shutil.copyfile(path, target / path.name)
    progress("writing the tokenizer", 0.6)
    finish(source, target, trust_remote_code)
    diffusion.keep_config(source, target)
    if compressed:
        compress.compress(draft, target, wanted, progress)
        shutil.rmtree(draft)
    return {package: metadata.version(package) for package in PACKAGES}


def save(
    source: str | Path,
    target: str | Path,
    precision: str,
    *,
    progress: Progress = silent,
    trust_remote_code: bool = False,
) -> dict[str, str]:
    """Write `source` into `target` as a Hugging Face folder with safetensors, for torch.

    precision: "fp32", "bf16" or "fp16". Returns package versions. Raises ModelError.
    """
    source, target = Path(source), Path(target)
    if source.is_dir() and speech_form(source):
        return whisper_export.save(source, target, precision, progress=progress)
    package_faults.mend()
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"reading weights needs more packages: {error}", "pip install torch transformers"
        ) from error
    progress("reading weights", 0.1)
    dtype = getattr(torch, precisions.TORCH_DTYPES[precision])
    model = load_source(source, target, trust_remote_code).to(dtype)
    progress("writing weights", 0.7)
    model.save_pretrained(target)
    finish(source, target, trust_remote_code)
    diffusion.keep_config(source, target)
    return {package: metadata.version(package) for package in ("torch", "transformers")}


def load_source(source: Path, work: Path, trust_remote_code: bool) -> Any:
    """Load a GGUF file or a Hugging Face folder as a transformers model.

    work: folder for temporary files. Raises ModelError.
    """
    package_faults.mend()
    return _load_gguf(source, work) if source.is_file() else _load_folder(source, trust_remote_code)


def finish(source: Path, target: Path, trust_remote_code: bool) -> None:
    """Write the tokenizer and token ids of `source` into the folder `target`, which has the model already.

    Its config.json becomes readable by other versions of transformers, too.
    """
    if source.is_file():
        _finish_gguf(source, target)
    else:
        _finish_folder(source, target, trust_remote_code)
    config = target / "config.json"
    write_json(config, config_file.with_old_names(read_json(config)), indent=2)


def _load_gguf(source: Path, target: Path) -> Any:
    """Load a GGUF model, dequantised exactly to float32 (float16 for large models)."""
    header = gguf_split.read(source)
    gguf_tokenizer.check_kind(Vocabulary(header))  # before minutes are spent on the weights
    entries = gguf_config.entries(header)
    slim = target / "weights.gguf"
    try:
        import torch
        from transformers import AutoConfig

        config = AutoConfig.for_model(**entries)
        big = 4 * sum(tensor.elements for tensor in header.tensors.values()) > FLOAT32_BYTES
        dtype = torch.float16 if big else torch.float32
        gguf_split.write_weights(header, slim, config.vocab_size)
        return gguf_weights.load(slim, header, config, dtype, half=big)
    except (ModelError, MemoryError, OSError):
        raise
    except Exception as error:  # transformers and gguf raise many kinds for files that they cannot use
        raise ModelError(
            f"{source} cannot be read: {_reason(error)}", "use the model's Hugging Face folder"
        ) from error
    finally:
        slim.unlink(missing_ok=True)


def _load_folder(source: Path, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    stored = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    dtype: Any = torch.float32 if 2 * stored <= FLOAT32_BYTES else "auto"
    if is_diffusion(read_json(source / "config.json")):
        return diffusion.read(source, dtype)
    return whole_model.read(
        AutoModelForCausalLM, source, hint="check that it is a complete language model",
        dtype=dtype, trust_remote_code=trust_remote_code,
    )  # fmt: skip


def _reason(error: Exception) -> str:
    """Return the first line of an error."""
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__


def _lift_limit(model_type: str) -> None:
    """Let models of `LIFTED` be exported with any transformers.

    optimum-intel 2.2 refuses versions above 5.0 for them. What it exports with newer ones computes the same,
    which tests/quantize/test_export.py checks.
    """
    from optimum.exporters.openvino import model_configs

    if model_type in LIFTED:
        model_configs.GemmaOpenVINOConfig.MAX_TRANSFORMERS_VERSION = None


def _is_16bit(model: Any) -> bool:
    import torch

    return model.dtype in (torch.float16, torch.bfloat16)


def _as_plain(model: Any) -> None:
    """Let a hybrid decoder of full attention only be exported as the plain decoder that it is.

    So is one layer of such a model (see `models.kinds.mtp`). The exporter of hybrids needs a linear layer.
    """
    kinds = {*(getattr(model.config, "layer_types", None) or ())}
    plain = _PLAIN.get(model.config.model_type)
    if plain is None or kinds != {"full_attention"}:
        return
    model.config.model_type = plain
    model.get_decoder()._update_linear_attn_mask = lambda *_, **__: (
        None
    )  # it asks the cache for linear states


def _check_config(config: Any, source: Path) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source} is an encoder-decoder model", "use a decoder-only language model")


def _finish_gguf(source: Path, target: Path) -> None:
    """Write the GGUF file's tokenizer, and its token ids into the configs, where runtimes look for them."""
    header = gguf_split.read(source)
    gguf_tokenizer.save(header, target)
    vocabulary = Vocabulary(header)
    ids = {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.end_ids() or None}
    ids["pad_token_id"] = vocabulary.special("padding")
    _merge_json(target / "generation_config.json", ids)
    _merge_json(target / "config.json", {**ids, "eos_token_id": vocabulary.eos})


def _finish_folder(source: Path, target: Path, trust_remote_code: bool) -> None:
    """Copy the folder's tokenizer files; convert a slow tokenizer to a fast one."""
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / "tokenizer.json").is_file():
        shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
        return
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source, use_fast=True, trust_remote_code=trust_remote_code, local_files_only=True
        )
        tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    except Exception as error:  # sentencepiece missing, files missing, python-only tokenizers
        raise ModelError(
            f"{source} has no usable tokenizer", "put the model's tokenizer.json into the folder"
        ) from error


def _merge_json(path: Path, values: dict[str, Any]) -> None:
    known = read_json(path)
    known.pop("_from_model_config", None)  # with it transformers would replace the ids again
    known.update({key: value for key, value in values.items() if value is not None})
    write_json(path, known, indent=2)
