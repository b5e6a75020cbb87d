"""Let NNCF compress large weights a piece at a time, with the same bits: it needs many times their size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Elements of a weight that are compressed at once. NNCF holds several arrays of them in float32: all of the
# embeddings of a 7B model took 7 GB beside the model.
PIECE = 1 << 24
_ROWS = 64  # of a piece are a multiple of this, so that pieces of 4-bit values begin with a whole byte


@contextmanager
def by_pieces() -> Iterator[None]:
    """Compress every weight by rows while the context lasts.

    Each output channel has scales of its own, so the pieces have the bits of the whole. A version of NNCF
    without this function compresses weights as a whole.
    """
    try:
        from nncf.quantization.algorithms.weight_compression import openvino_backend as backend
    except ImportError:
        yield
        return
    whole = getattr(backend, "compress_weight", None)
    if whole is None:
        yield
        return

    def compress(weight: Any, axes: Any, config: Any, precomputed: Any = None) -> Any:
        rows = _rows(tuple(weight.shape))
        first = 0 in ((axes,) if isinstance(axes, int) else tuple(axes or (0,)))
        if precomputed is not None or first or not config.is_integer or 2 * rows > weight.shape[0]:
            return whole(weight, axes, config, precomputed)
        return _joined(whole, weight, axes, config, rows)

    backend.compress_weight = compress
    try:
        yield
    finally:
        backend.compress_weight = whole


def _rows(shape: tuple[int, ...]) -> int:
    """Return the number of rows of a piece."""
    return max(1, PIECE // max(math.prod(shape[1:]) * _ROWS, 1)) * _ROWS


def _joined(whole: Any, weight: Any, axes: Any, config: Any, rows: int) -> Any:
    """Return the compressed weight, put together from pieces of so many rows."""
    from nncf.tensor import Tensor

    total = int(weight.shape[0])
    parts: dict[str, Any] = {}
    found: Any = None
    with _compiled_once():
        for start in range(0, total - rows + 1, rows):
            # The last piece has the rest as well: NNCF takes another function for very small weights.
            end = start + rows if start + 2 * rows <= total else total
            found = whole(Tensor(_slice(weight.data, start, end)), axes, config, None)
            for name in ("tensor", "scale", "zero_point"):
                piece = getattr(found, name)
                if piece is None:
                    continue
                if name not in parts:
                    parts[name] = _empty(piece.data, total)
                bits, piece_bits = _bytes(parts[name]), _bytes(piece.data)
                begin = start * piece_bits.size // (end - start)
                bits[begin : begin + piece_bits.size] = piece_bits
    for name, value in parts.items():
        setattr(found, name, Tensor(value))
    return found


@contextmanager
def _compiled_once() -> Iterator[None]:
    """Let NNCF compile its graph once for all pieces of a weight.

    It compiles anew for each weight, since weights are left in the memory of the graph's request. Pieces are
    copied from there at once.
    """
    try:
        from nncf.openvino.optimized_functions.models import OV_MODEL_CACHE as compiled
    except ImportError:
        yield
        return
    enabled = compiled.enabled()
    compiled.enable()
    try:
        yield
    finally:
        if not enabled:
            compiled.disable()
        compiled.clear()


def _slice(data: Any, start: int, end: int) -> Any:
    """Return rows of a NumPy array or an OpenVINO tensor, in the same memory."""
    if isinstance(data, np.ndarray):
        return data[start:end]
    import openvino

    _, *rest = data.shape
    first, last = openvino.Coordinate([start, *(0 for _ in rest)]), openvino.Coordinate([end, *rest])
    return openvino.Tensor(data, first, last)


def _empty(piece: Any, rows: int) -> Any:
    """Return room for the whole of which `piece` is a part."""
    shape = (rows, *tuple(piece.shape)[1:])
    if isinstance(piece, np.ndarray):
        return np.empty(shape, piece.dtype)
    import openvino

    return openvino.Tensor(piece.get_element_type(), openvino.Shape(shape))


def _bytes(data: Any) -> NDArray[np.uint8]:
    """Return the bytes of a NumPy array or an OpenVINO tensor, in the same memory."""
    array = data if isinstance(data, np.ndarray) else data.data
    return array.reshape(-1).view(np.uint8)
