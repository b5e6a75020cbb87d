"""A recurrent draft head in a bundle: its shape (plain data, checked when made) and its weights.

The weights are one safetensors file. Matrices are int8 with a float16 scale a row, vectors are float32. The
head has no embeddings and no language-model head of its own: it uses the target's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.errors import ModelError
from specport.models import tensors
from specport.models.safe_files import UnsafeFile

WEIGHTS = "head.safetensors"
EPSILON = 1e-6  # in every RMS norm of the head
SCALE = ".scale"  # suffix of a matrix's name, for its scales
MAX_LAYERS, MAX_BLOCKS, MAX_WIDTH, MAX_DEPTH = 8, 8, 1 << 16, 16

Array = NDArray[Any]


@dataclass(frozen=True)
class Recurrent:
    """Hold the shape of a recurrent head (`core.ports.HiddenHead`).

    layers: of the target, whose hidden states it begins with, ascending.
    width:  of the target's hidden states, embeddings and of the head's state.
    inner:  of the feed-forward blocks, of which there are `blocks`.
    depth:  tokens that it was trained to draft one after the other.

    With norm(x) = x / sqrt(mean(x^2) + EPSILON), h_l the target's states, and e the token's embedding:

        begin:  s = enter (enter.gain * [norm(h_l) for l in layers])
        step:   y = keep * s + join [state.gain * norm(s), token.gain * norm(e)]
                y = y + block.i.down (silu(a) * b)  for each block i
                        with [a, b] = block.i.up (block.i.gain * norm(y))
                s = y
        logits: head (out.gain * norm(s)), with rows of the target's language-model head

    Raises ValueError for values out of range, and TypeError for others than whole numbers.
    """

    layers: tuple[int, ...]
    width: int
    inner: int
    blocks: int
    depth: int

    def __post_init__(self) -> None:
        for value in (*self.layers, self.width, self.inner, self.blocks, self.depth):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{value!r} is not a whole number")
        rising = list(self.layers) == sorted({*self.layers}) and min(self.layers, default=-1) >= 0
        if not rising or len(self.layers) > MAX_LAYERS:
            raise ValueError(f"{list(self.layers)} are not layers of a target")
        limits = {"width": MAX_WIDTH, "inner": MAX_WIDTH, "blocks": MAX_BLOCKS, "depth": MAX_DEPTH}
        for name, most in limits.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, not from 1 to {most}")

    @classmethod
    def of(cls, table: Mapping[str, Any] | None) -> Recurrent | None:
        """Return what a manifest says; None where it says nothing.

        Raises KeyError, TypeError or ValueError for an invalid table.
        """
        if table is None:
            return None
        names = ("width", "inner", "blocks", "depth")
        return cls(tuple(table["layers"]), *(table[name] for name in names))

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return the shape [rows, columns] of each matrix."""
        shapes = {"enter": (self.width, len(self.layers) * self.width), "join": (self.width, 2 * self.width)}
        for i in range(self.blocks):
            shapes[f"block.{i}.up"] = (2 * self.inner, self.width)
            shapes[f"block.{i}.down"] = (self.width, self.inner)
        return shapes

    @property
    def vectors(self) -> dict[str, int]:
        """Return the length of each vector."""
        lengths = {"enter.gain": len(self.layers) * self.width}
        names = ["state.gain", "token.gain", "keep", "out.gain"]
        names += [f"block.{i}.gain" for i in range(self.blocks)]
        return lengths | dict.fromkeys(names, self.width)

    @property
    def num_parameters(self) -> int:
        return sum(map(math.prod, self.matrices.values())) + sum(self.vectors.values())


def quantized(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return a matrix as int8 [rows, columns] and scales [rows, 1]."""
    scale = np.maximum(np.abs(matrix).max(axis=1, keepdims=True) / 127.0, 1e-6).astype(np.float16)
    return np.clip(np.rint(matrix / scale.astype(np.float32)), -127, 127).astype(np.int8), scale


def read_weights(folder: Path, shape: Recurrent) -> dict[str, Array]:
    """Return the tensors of the head in `folder` by name: int8 matrices, their scales, float32 vectors.

    Raises ModelError where the file is missing, damaged or of another shape.
    """
    try:
        found = {name: stored.array() for name, stored in tensors.header(folder / WEIGHTS).items()}
    except (OSError, UnsafeFile, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {error}", "build the head again") from error
    wanted: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for name, (rows, columns) in shape.matrices.items():
        wanted[name] = tensors.DTYPES["I8"], (rows, columns)
        wanted[name + SCALE] = tensors.DTYPES["F16"], (rows, 1)
    wanted |= {name: (tensors.DTYPES["F32"], (length,)) for name, length in shape.vectors.items()}
    for name, facts in wanted.items():
        array = found.get(name)
        if array is None or (array.dtype, array.shape) != facts or not np.isfinite(array).all():
            raise ModelError(f"{folder / WEIGHTS} has no usable {name}", "build the head again")
    return {name: found[name] for name in wanted}


def dequantized(weights: Mapping[str, Array], shape: Recurrent) -> dict[str, NDArray[np.float32]]:
    """Return matrices and vectors by name as float32."""
    found = {
        name: weights[name].astype(np.float32) * weights[name + SCALE].astype(np.float32)
        for name in shape.matrices
    }
    return found | {name: weights[name].astype(np.float32) for name in shape.vectors}
