"""The config.json of a converted model, written so that transformers 4 and 5 read the same model from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BASE, _PARTIAL = "rope_theta", "partial_rotary_factor"


def with_old_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a config.json with what transformers 5 renamed under the old names, too.

    transformers 5 moved all about rotary positions into `rope_parameters`, for gemma3 by kind of layer.
    transformers 4 does not read that entry and would silently take its own defaults. Models with other
    kinds of layers, which have no old names, stay as they are.
    """
    rope = config.get("rope_parameters")
    if not rope:
        return {**config}
    by_kind = any(isinstance(value, dict) for value in rope.values())
    if by_kind and not str(config.get("model_type")).startswith("gemma3"):
        return {**config}
    main = rope["full_attention"] if by_kind else rope
    scaling = {name: value for name, value in main.items() if name not in (_BASE, _PARTIAL)}
    old = {name: main[name] for name in (_BASE, _PARTIAL) if name in main}
    if scaling.get("rope_type", "default") != "default":
        old["rope_scaling"] = scaling
    if by_kind:
        old["rope_local_base_freq"] = rope["sliding_attention"][_BASE]
    return {**old, **config}
