"""The decoders whose layers trainings of whole models know. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specport.errors import ModelError

# Their model_type. All layers have full attention with rotary positions.
DECODERS = ("llama", "qwen2", "qwen3")


def check(config: Mapping[str, Any], purpose: str) -> None:
    """Raise ModelError for the configuration of a decoder that cannot be trained for `purpose`."""
    kind = config.get("model_type")
    if kind not in DECODERS:
        raise ModelError(f"{kind} cannot be trained to {purpose}", f"choose one of {', '.join(DECODERS)}")
    if config.get("use_sliding_window"):
        raise ModelError(
            f"a {kind} with sliding windows cannot be trained to {purpose}", "choose another model"
        )
