"""Find the longest sequence that a model's configuration allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specport.errors import ModelError
from specport.models.json_file import text_part, whole

_DEFAULT = 2048  # for a config.json that names no limit


def context_limit(config: Mapping[str, Any], most: int | None) -> int:
    """Return the model's own limit in tokens, or `most` where that is less.

    config: the model's config.json. Raises ModelError where config.json holds a limit that is no number.
    """
    config = text_part(dict(config))
    limit = whole(config, "max_position_embeddings")
    if limit is None:
        if not isinstance(config.get("max_position_embeddings", 0), int):
            raise ModelError("config.json: max_position_embeddings is not a number")
        limit = _DEFAULT
    return limit if most is None else min(limit, most)
