"""Embed pairs of tokens: what stands for the embeddings of a pair model's decoder, also in its training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from specport.errors import ModelError
from specport.models.kinds.pipo import Pairs

if TYPE_CHECKING:
    from torch import Tensor


_NARROW = ("hpu",)  # devices whose graphs turn int64 into int32


class Compressor(torch.nn.Module):  # type: ignore[misc]
    """Fold the embeddings of two tokens into one: their sum, and a residual that is 0 at first.

    Formulas: `models.kinds.pipo.PairWeights`. PAD's vector is 0 at first, so that a token with PAD reads as
    itself.
    """

    def __init__(self, width: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.up = torch.nn.Linear(2 * width, width, bias=False, dtype=dtype)
        self.down = torch.nn.Linear(width, width, bias=False, dtype=dtype)
        self.pad = torch.nn.Parameter(torch.zeros(width, dtype=dtype))
        torch.nn.init.zeros_(self.down.weight)

    def forward(self, first: Tensor, second: Tensor, padded: Tensor) -> Tensor:
        """Return [..., width]. first, second: embeddings of that shape. padded: [...] PAD stands second."""
        second = torch.where(padded[..., None], self.pad.to(second.dtype), second)
        folded = self.down(functional.silu(self.up(torch.cat([first, second], dim=-1))))
        total: Tensor = first + second + folded
        return total


class PairEmbedding(torch.nn.Module):  # type: ignore[misc]
    """Embed ids of pairs. table: the decoder's module that embeds tokens [..., n]."""

    def __init__(self, table: Any, pairs: Pairs) -> None:
        super().__init__()
        self.table, self._stride, self._no_second = table, pairs.stride, pairs.no_second
        dtype = table.weight.dtype
        self.compressor = Compressor(pairs.config.width, dtype)
        for name in ("up", "down"):
            linear = getattr(self.compressor, name)
            linear.weight.data = torch.from_numpy(getattr(pairs.weights, name).copy()).to(dtype)
        self.compressor.pad.data = torch.from_numpy(pairs.weights.pad.copy()).to(dtype)

    @property
    def weight(self) -> Tensor:
        """Return the table's rows, whose number others ask for."""
        rows: Tensor = self.table.weight
        return rows

    def forward(self, ids: Tensor) -> Tensor:
        """Return [..., width] of ids `Pairs.ids` [...]."""
        first = torch.div(ids, self._stride, rounding_mode="floor")
        second = ids - first * self._stride
        padded = second == self._no_second
        second = second.clamp(max=self._no_second - 1)
        found: Tensor = self.compressor(self.table(first), self.table(second), padded)
        return found


def install_pairs(model: Any, pairs: Pairs | None, device: str) -> None:
    """Let a transformers decoder read pairs; None = it reads tokens. device: where it will run.

    Raises ModelError where it is of another width or vocabulary, or the device computes with ids of 32 bits
    (Gaudi) in which those of pairs do not fit.
    """
    if pairs is None:
        return
    if device in _NARROW and pairs.stride**2 > 1 << 31:
        raise ModelError(
            f"pairs of {pairs.config.vocab:,} tokens do not fit the ids of {device}, which have 32 bits",
            "choose another --device",
        )
    table = model.get_input_embeddings()
    rows, width = table.weight.shape
    if (rows, width) != (pairs.config.vocab, pairs.config.width):
        raise ModelError(
            f"the pair model's decoder has {rows} tokens and is {width} wide, not {pairs.config.vocab} and "
            f"{pairs.config.width}",
            "train it again with: specport quantize pipo",
        )
    model.set_input_embeddings(PairEmbedding(table, pairs).requires_grad_(False))
