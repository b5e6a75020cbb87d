"""Weights that are compressed a piece at a time get the bits of those that are compressed as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("nncf")

import nncf
import openvino as ov
from nncf.common.utils.caching import disable_results_caching
from nncf.openvino.optimized_functions.models import OV_MODEL_CACHE
from nncf.quantization.algorithms.weight_compression import openvino_backend as backend
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.tensor import Tensor
from specport.quantize.convert import nncf_pieces

MODES = nncf.CompressWeightsMode
ROWS, WIDTH = 200, 256  # the last piece is larger than the others


def weight(kind: str) -> Tensor:
    values = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    values *= np.linspace(0.1, 3, ROWS, dtype=np.float32)[:, None]
    if kind == "numpy":
        return Tensor(values)
    if kind == "bf16":
        bits = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.float16)
        return Tensor(ov.Tensor(bits, ov.Shape(bits.shape), ov.Type.bf16))
    return Tensor(ov.Tensor(values.astype(np.dtype(kind))))


def parts(found: Any) -> list[tuple[tuple[int, ...], bytes]]:
    """Return shapes and bytes of the weight, its scales and its zero points."""
    values = [v for v in (found.tensor, found.scale, found.zero_point) if v is not None]
    arrays = [v.data if isinstance(v.data, np.ndarray) else v.data.data for v in values]
    return [(tuple(v.shape), array.tobytes()) for v, array in zip(values, arrays, strict=True)]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "float32", "float16", "bf16"])
@pytest.mark.parametrize(
    ("mode", "group"), [("INT4_SYM", 64), ("INT4_ASYM", 32), ("INT8_ASYM", -1), ("INT8_SYM", -1)]
)
def test_pieces_have_the_bits_of_the_whole(
    mode: str, group: int, kind: str, reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reference:
        monkeypatch.setenv("NNCF_DISABLE_OPTIMIZED_COMPRESSION", "1")
    config = WeightCompressionConfig(mode=getattr(MODES, mode), group_size=group)
    with disable_results_caching(OV_MODEL_CACHE):  # as NNCF does around a weight
        expected = parts(backend.compress_weight(weight(kind), (1,), config))
    sizes = []
    before = backend.compress_weight

    def watched(part: Tensor, *rest: Any) -> Any:
        sizes.append(part.shape[0])
        return before(part, *rest)

    monkeypatch.setattr(backend, "compress_weight", watched)
    monkeypatch.setattr(nncf_pieces, "PIECE", 64 * WIDTH)
    with nncf_pieces.by_pieces(), disable_results_caching(OV_MODEL_CACHE):
        found = backend.compress_weight(weight(kind), (1,), config)
        assert not OV_MODEL_CACHE.enabled()
    assert sizes == [64, 64, 72]
    assert parts(found) == expected
    assert backend.compress_weight is watched


def test_what_is_rounded_across_rows_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nncf_pieces, "PIECE", 64 * WIDTH)
    config = WeightCompressionConfig(mode=MODES.INT8_ASYM, group_size=-1)
    whole = backend.compress_weight(weight("numpy"), (0,), config)
    with nncf_pieces.by_pieces():
        found = backend.compress_weight(weight("numpy"), (0,), config)
    assert parts(found) == parts(whole)
