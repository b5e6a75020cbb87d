"""Architectures that OpenVINO converts but computes differently from transformers."""

from __future__ import annotations

from pathlib import Path

from specport.errors import ModelError
from specport.models.json_file import read_json

# The paged form replaces the mask of attention, and with it what these decoders add to theirs (2026.4).
_DROPPED = {
    "mpt": "its ALiBi biases are lost in OpenVINO's paged attention",
    "gpt_neo": "the windows of its local layers are lost in OpenVINO's paged attention",
}


def check(folder: Path, name: str) -> None:
    """Raise ModelError for a model whose text would be wrong."""
    kind = read_json(folder / "config.json").get("model_type")
    if isinstance(kind, str) and kind in _DROPPED:
        raise ModelError(
            f"{name} ({kind}) does not run on OpenVINO: {_DROPPED[kind]}",
            "run it on torch: --device cuda, or torch-cpu",
        )


def notes(folder: Path) -> tuple[str, ...]:
    """Return what to tell the user of a model whose logits differ a little from those of transformers."""
    cap = read_json(folder / "config.json").get("attn_logit_softcapping")
    if not isinstance(cap, (int, float)) or not cap:
        return ()
    return (
        f"attention has no soft cap on OpenVINO: scores beyond {cap:g} weigh a little more than the model's "
        "authors meant, as with sdpa in transformers",
    )
