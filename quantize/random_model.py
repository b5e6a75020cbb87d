"""Make decoders of random weights from a configuration, for tests of architectures and of load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from specport.quantize.convert import package_faults, whole_model

from specport.errors import ModelError

_GAIN = 1.3


def build(configuration: Mapping[str, Any], seed: int = 0) -> Any:
    """Return a transformers decoder in float32 with random weights, with eager attention.

    Matrices keep the size of what they multiply, unlike those that training begins with: greedy text varies,
    and what a token attends to matters.

    configuration: the entries of a config.json, `model_type` among them.
    Raises ModelError where the installed transformers does not have the architecture.
    """
    package_faults.mend()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    entries = {**configuration}
    kind = entries.pop("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"the installed transformers has no decoder {kind!r}")
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **entries)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # gains, biases, decays
                parameter.add_(torch.randn_like(parameter) * 0.05)
            else:
                parameter.normal_(std=_GAIN * parameter.shape[-1] ** -0.5)
        model.get_input_embeddings().weight.normal_()
    return model


def save(folder: Path, configuration: Mapping[str, Any], seed: int = 0) -> Any:
    """Save what `build` returns as a Hugging Face folder without a tokenizer, and return it."""
    model = build(configuration, seed)
    model.save_pretrained(folder)
    return model


def logits(folder: Path, ids: Sequence[int], attention: str = "eager") -> NDArray[np.float32]:
    """Return the logits of a text by transformers in float32, [tokens, vocab].

    A gated delta net steps token by token here: its chunks round far more coarsely.
    """
    package_faults.mend()
    import torch
    from transformers import AutoModelForCausalLM

    model = whole_model.read(AutoModelForCausalLM, folder, dtype=torch.float32, attn_implementation=attention)
    for module in model.modules():
        if hasattr(module, "chunk_gated_delta_rule"):
            module.chunk_gated_delta_rule = module.recurrent_gated_delta_rule
    with torch.no_grad():
        found: NDArray[np.float32] = model.eval()(torch.tensor([[*ids]]), use_cache=True).logits[0].numpy()
    return found
