"""Give ALiBi's biases (arXiv 2108.12409) to decoders that would derive them from a mask of whole texts.

A bias is a slope, of the head, times the position of the token that is attended to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def install(decoder: Any, positions: Callable[[], Tensor]) -> bool:
    """Replace the function by which a decoder builds its biases.

    positions: returns those of the rows that the current step attends to [slots, length].
    Returns whether the biases hold for all blocks: MPT has them for chains only, the same for all sequences.
    """
    if hasattr(decoder, "build_alibi_tensor"):  # Bloom
        build = decoder.build_alibi_tensor

        def of_each_row(mask: Any, heads: int, dtype: Any) -> Tensor:
            where = positions()
            pair = build(torch.ones((1, 2), device=where.device), heads, torch.float32)
            biases = (pair[:, 0, 1] - pair[:, 0, 0])[None, :, None] * where[:, None, :]
            return biases.reshape(-1, 1, where.shape[1]).to(dtype)

        decoder.build_alibi_tensor = of_each_row
    elif hasattr(decoder, "build_mpt_alibi_tensor"):
        build = decoder.build_mpt_alibi_tensor

        def of_a_chain(heads: int, length: int, alibi_bias_max: int = 8, device: Any = None) -> Tensor:
            where = torch.arange(positions().shape[1], device=device)
            pair = build(heads, 2, alibi_bias_max, device)
            return (pair[:, :, 1:] - pair[:, :, :1]) * where

        decoder.build_mpt_alibi_tensor = of_a_chain
        return False
    return True
