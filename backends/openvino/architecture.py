"""Architectures that OpenVINO converts but computes differently from transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specport.errors import ModelError

# The paged form replaces the mask of attention, and with it what these decoders add to theirs (2026.4).
_DROPPED = {
    "mpt": "its ALiBi biases are lost in OpenVINO's paged attention",
    "gpt_neo": "the windows of its local layers are lost in OpenVINO's paged attention",
}


def check(config: Mapping[str, Any], name: str) -> None:
    """Raise ModelError for a model whose text would be wrong. config: its config.json."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in _DROPPED:
        raise ModelError(
            f"{name} ({kind}) does not run on OpenVINO: {_DROPPED[kind]}",
            "run it on torch: --device cuda, or torch-cpu",
        )


def notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what to tell the user of a model whose logits differ a little from those of transformers."""
    cap = config.get("attn_logit_softcapping")
    if not isinstance(cap, (int, float)) or not cap:
        return ()
    return (
        f"attention has no soft cap on OpenVINO: scores beyond {cap:g} weigh a little more than the model's "
        "authors meant, as with sdpa in transformers",
    )
