"""Read a Hugging Face folder into a transformers decoder on a device, with attention over cache slots."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from specport.backends.torch import packed_linear
from specport.backends.torch.slots.attention import ATTENTION, attention
from specport.quantize.convert import whole_model
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
)

from specport.errors import DeviceError, ModelError
from specport.models.precision import TORCH_DTYPES

if TYPE_CHECKING:
    from specport.models.source import ModelFiles


# Decoders whose results would be wrong on cache slots, and why.
_WRONG = {
    "gpt_neo": "its layers cut a mask of their own, for whole texts",
    "recurrent_gemma": "its layers keep their states themselves",
    "falcon": "it derives ALiBi's biases from a mask of whole texts",  # with `alibi`
}


def read(files: ModelFiles, head_tokens: tuple[int, ...] | None) -> Any:
    """Return the decoder of `files.folder` in `files.precision`, its head cut to `head_tokens` where given.

    It is in the host's memory and not ready to run (`place`).
    Raises ModelError for weights that cannot be used.
    """
    AttentionInterface.register(ATTENTION, attention)
    hint = "check that it is a complete decoder"
    with whole_model.explained(files.folder, hint):
        config = AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
        _check(config, files.folder)
    model = whole_model.read(
        AutoModelForCausalLM, files.folder, hint=hint, config=config,
        dtype=getattr(torch, TORCH_DTYPES[files.precision]), attn_implementation=_attention_of(config),
    )  # fmt: skip
    if head_tokens is not None:
        cut_head(model, head_tokens)
    return model.eval().requires_grad_(False)


def _attention_of(config: Any) -> str:
    """Return the attention that a decoder is to run: ours, or an own one where it takes no other."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    module = sys.modules.get(getattr(kind, "__module__", ""))
    if module is None or hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        return ATTENTION
    return "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"


def place(model: Any, name: str, device: str, *, exact: bool = False) -> None:
    """Move a decoder, ready to run, to a device. Raises DeviceError where it does not fit.

    exact: its packed layers round alike for any number of rows.
    """
    move(model, name, device)
    if device == "cpu" and packed_linear.available(model.dtype):
        packed_linear.pack(model, exact=exact)


def move(model: Any, name: str, device: str) -> None:
    """Move a decoder, whose linear layers are not packed, to a device. Raises DeviceError as `place` does."""
    try:
        model.to(device)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise DeviceError(
            f"{name} does not fit the memory of {device}", "use a smaller model or bf16"
        ) from error


def _check(config: Any, folder: Path) -> None:
    """Raise ModelError for decoders that do not run on cache slots."""
    kind, reason = config.model_type, ""
    if getattr(config, "is_encoder_decoder", False):
        reason = "it is no decoder alone"
    elif kind in _WRONG and (kind != "falcon" or config.alibi):
        reason = _WRONG[kind]
    if reason:
        raise ModelError(f"{folder} ({kind}) does not run on torch: {reason}", "use --device xeon")


def cut_head(model: Any, tokens: tuple[int, ...]) -> None:
    """Keep these rows of the head. The embedding, which may share its weight, stays whole."""
    old = model.get_output_embeddings()
    if not tokens or min(tokens) < 0 or max(tokens) >= old.weight.shape[0]:
        raise ModelError(f"a head of {old.weight.shape[0]} tokens cannot be cut to these {len(tokens)}")
    new = torch.nn.Linear(old.in_features, len(tokens), bias=False, dtype=old.weight.dtype)
    new.weight.data.copy_(old.weight.data[list(tokens)])
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(new)
