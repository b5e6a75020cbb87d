"""Read a Hugging Face folder into a transformers decoder on a device, with attention over cache slots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from specport.backends.torch import packed_linear
from specport.backends.torch.slots.cache import Shape
from specport.backends.torch.slots.step import ATTENTION, attention
from transformers import AttentionInterface, AutoModelForCausalLM

from specport.errors import DeviceError, ModelError
from specport.models.precision import TORCH_DTYPES

if TYPE_CHECKING:
    from specport.models.source import ModelFiles


def read(files: ModelFiles, head_tokens: tuple[int, ...] | None) -> Any:
    """Return the decoder of `files.folder` in `files.precision`, its head cut to `head_tokens` where given.

    It is in the host's memory and not ready to run (`place`).
    Raises ModelError for weights that cannot be used.
    """
    AttentionInterface.register(ATTENTION, attention)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            files.folder,
            dtype=getattr(torch, TORCH_DTYPES[files.precision]),
            attn_implementation=ATTENTION,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # transformers raises many types for unusable files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(
            f"{files.folder} cannot be read: {reason}", "check that it is a complete decoder"
        ) from error
    _check(model.config, files.folder)
    if head_tokens is not None:
        _cut_head(model, head_tokens)
    return model.eval().requires_grad_(False)


def place(model: Any, name: str, device: str) -> None:
    """Move a decoder, ready to run, to a device. Raises DeviceError where it does not fit."""
    move(model, name, device)
    if device == "cpu" and packed_linear.available(model.dtype):
        packed_linear.pack(model)


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


def shape_of(model: Any, device: str, exit_layer: int) -> Shape:
    """Return the shape of the model's cache per token, with exit queries where it exits early."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    query = config.hidden_size if exit_layer else 0
    return Shape(config.num_hidden_layers, heads, width, model.dtype, device, query)


def _check(config: Any, folder: Path) -> None:
    """Raise ModelError for features that the step's attention and cache do not support."""
    if getattr(config, "attn_logit_softcapping", None):
        raise ModelError(f"{folder} caps its attention scores (gemma2)", "use --device xeon")
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "num_attention_heads"):
        raise ModelError(
            f"{folder} is not a decoder with plain attention", "use a decoder-only language model"
        )


def _cut_head(model: Any, tokens: tuple[int, ...]) -> None:
    """Keep these rows of the head. The embedding, which may share its weight, stays whole."""
    old = model.get_output_embeddings()
    if not tokens or min(tokens) < 0 or max(tokens) >= old.weight.shape[0]:
        raise ModelError(f"a head of {old.weight.shape[0]} tokens cannot be cut to these {len(tokens)}")
    new = torch.nn.Linear(old.in_features, len(tokens), bias=False, dtype=old.weight.dtype)
    new.weight.data.copy_(old.weight.data[list(tokens)])
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(new)
