"""Random recurrent heads for tiny models, in bundles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specport.models import bundle
from specport.models.bundle import Bundle
from specport.models.kinds.recurrent import SCALE, WEIGHTS, Recurrent, quantized
from specport.models.weight_sketch import sketch
from specport.text.tokenizer import load_tokenizer

SHAPE = Recurrent((0, 1), 64, 96, 2, 3)
COLUMNS = (0, 2, *range(40, 240))


def weights(shape: Recurrent = SHAPE, seed: int = 0) -> dict[str, Any]:
    """Return random weights by name, as a head's file has them."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for name, size in shape.matrices.items():
        values, scale = quantized(rng.normal(size=size).astype(np.float32) / np.sqrt(size[1]))
        found |= {name: values, name + SCALE: scale}
    for name, length in shape.vectors.items():
        found[name] = rng.uniform(0.5, 1.5, length).astype(np.float32)
    return found


def save_head(folder: Path, target: Path, columns: Sequence[int] | None = COLUMNS, **changes: Any) -> Path:
    """Write a bundle with a head for the model in `target`, an IR or Hugging Face folder; return its folder.

    changes: of the manifest.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(), folder / WEIGHTS)
    facts: dict[str, Any] = {
        "target": "tiny", "target_shape": bundle.shape(target), "target_fingerprint": "none",
        "target_sketch": sketch(target), "tokenizer": load_tokenizer(target).fingerprint, "source": "tiny",
        "precision": "int8", "layers": (), "num_layers": 2,
        "head": None if columns is None else bundle.ranges(columns), "recurrent": SHAPE,
        "measured": {"speed_up": 1.5, "cost": 0.05},
    }  # fmt: skip
    bundle.write(folder, Bundle(**{**facts, **changes}))
    return folder
