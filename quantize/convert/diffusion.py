"""Read masked-diffusion language models as decoders whose attention mask is given, and write ours.

The published models come with Python code of their own, which is not run. SDAR is a Qwen3, Dream is a Qwen2,
and models of ours are whatever decoder they were made from: layers, norms and rotary positions are the same.
What differs is what a token attends to, which a caller gives. `diffusion_moe.py` has LLaDA 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specport.quantize.convert import package_faults, whole_model

from specport.errors import ModelError
from specport.models.atomic import write_json
from specport.models.json_file import read_json
from specport.models.kinds.diffusion import BASE, KIND, DiffusionFacts, entries, find_facts, is_diffusion

_MOE = "llada2_moe"
_BASES = {"sdar": "qwen3", "Dream": "qwen2"}
# Entries of their configurations that name code or types, not sizes.
_NAMES = ("model_type", "architectures", "auto_map", "transformers_version", BASE)
_CHECK = "check that it is a complete diffusion model"


def read(folder: Path, dtype: Any, attention: str = "sdpa") -> Any:
    """Return the decoder of a diffusion model, with its head. Raises ModelError.

    dtype:     torch's. attention: name of the implementation, as transformers knows it.
    The model takes `attention_mask` [texts, 1, T, rows], which is added to the scores.
    """
    package_faults.mend()
    find_facts(folder)  # its mask and block are checked
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    _check(config, kind, folder)
    with whole_model.explained(f"{folder} ({kind})", _CHECK):
        made, configuration = _made(folder, config, kind), _configuration(folder, config, kind)
        whole_model.check_room(made, folder, configuration)
        model, told = made.from_pretrained(
            folder,
            config=configuration,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    whole_model.check(model, told, folder)
    return model.eval().requires_grad_(False)


def _made(folder: Path, config: Mapping[str, Any], kind: str) -> Any:
    """Return the class of a model."""
    if kind == _MOE:
        from specport.quantize.convert.diffusion_moe import LLaDA2

        return LLaDA2
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING[type(_configuration(folder, config, kind))]


def _configuration(folder: Path, config: Mapping[str, Any], kind: str) -> Any:
    if kind == _MOE:
        from specport.quantize.convert.diffusion_moe import configuration

        return configuration(config, folder)
    from transformers import AutoConfig

    given = {name: value for name, value in config.items() if name not in _NAMES}
    return AutoConfig.for_model(config.get(BASE) if kind == KIND else _BASES[kind], **given)


def _check(config: Mapping[str, Any], kind: str, folder: Path) -> None:
    """Raise ModelError for what the published code of these models computes in another way."""
    if config.get("use_sliding_window"):
        raise ModelError(f"{folder} ({kind}): sliding windows are not supported", "use a model without them")


def read_to_train(folder: Path) -> tuple[Any, DiffusionFacts] | None:
    """Return a diffusion model of ours in float32 and its facts; None for a model of another kind.

    Raises ModelError for the published diffusion models, which are not trained further here.
    """
    config = read_json(folder / "config.json") if folder.is_dir() else {}
    if not is_diffusion(config):
        return None
    if config.get("model_type") != KIND:
        raise ModelError(
            f"{folder} ({config['model_type']}) is a diffusion model already", "name an autoregressive model"
        )
    import torch

    facts = find_facts(folder)
    assert facts is not None  # as it is a diffusion model
    return read(folder, torch.float32).requires_grad_(True), facts


def mark(folder: Path, facts: DiffusionFacts) -> None:
    """Make the config.json of a decoder that learnt to fill in masks that of a diffusion model of ours."""
    path = folder / "config.json"
    config = read_json(path)
    write_json(path, entries(config, config["model_type"], facts), indent=2)


def keep_config(source: Path, target: Path) -> None:
    """Give a conversion of a diffusion model the model's own config.json; other folders stay as they are."""
    config = read_json(source / "config.json") if source.is_dir() else {}
    if is_diffusion(config):
        write_json(target / "config.json", config, indent=2)


def check_graph(config: Mapping[str, Any], source: Path) -> None:
    """Raise ModelError for a diffusion model that is not converted to OpenVINO's graphs."""
    if config.get("model_type") == _MOE:
        raise ModelError(
            f"{source} ({_MOE}) does not run on OpenVINO", "run it on torch: --device torch-cpu, or cuda"
        )
