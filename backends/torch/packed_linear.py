"""Linear layers for CPUs: weights packed once in oneDNN's layout.

On a CPU, torch passes f32 matrix products to MKL, whose rounding depends on the number of rows, and bf16
products to oneDNN, which packs the weight again at every call. torch's own compiler uses packed weights
(`torch._inductor`, freezing). Called directly, they run at memory bandwidth, and two or more rows round
bit-identically for any number of rows, which makes exact mode cheap. With AMX that holds for up to 32 rows of
bf16: whether more round alike depends on the layer's shape, and is tried once.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from specport.runtime import numerics
from specport.runtime.devices.profiles import cpu_name

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 8  # number of rows that the layout is optimised for; it works for any
_FEW = 32  # rows that round alike on every processor so far
_MANY = (33, 64, 128, 256)  # numbers of rows that are tried


class PackedLinear(torch.nn.Module):  # type: ignore[misc]
    """Compute the same as a `torch.nn.Linear`, without gradients.

    least: number of rows to which fewer ones are padded: a lone row takes another kernel.
    most:  number of rows that are computed at once; 0 = any.
    """

    def __init__(self, linear: Any, *, exact: bool = False) -> None:
        """Take a layer. exact: rows are rounded alike in products of any number of rows from two on."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias, self.least = linear.bias, 1
        self._dtype = linear.weight.dtype
        self.most = 0
        if exact and not _rounds_alike(
            self.in_features, self.out_features, self._dtype, torch.get_num_threads()
        ):
            self.most = _FEW
        self.pack(linear.weight)

    def pack(self, weight: Tensor) -> None:
        """Take a weight [out, in], converted to the layer's precision."""
        self._plain: Tensor | None = None
        own = weight.detach().to(self._dtype).contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(own, _ROWS)

    @property
    def weight(self) -> Tensor:
        """Return the weight unpacked, for a layer that is not called as one: some routers of experts."""
        if self._plain is None:
            self._plain = self._packed.to_dense()
        return self._plain

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            called: Tensor = _opaque(x, self._packed, self.bias, self.out_features)
            return called
        rows = x.numel() // self.in_features
        if not rows:  # an expert that no token chose
            return x.new_empty((*x.shape[:-1], self.out_features))
        if 0 < self.most < rows:
            parts = x.reshape(rows, -1).split(self.most)
            out = torch.cat([self._padded(part, max(2, self.least)) for part in parts])
        elif rows >= self.least:
            return _product(x, self._packed, self.bias, self.out_features)
        else:
            out = self._padded(x.reshape(rows, -1), self.least)
        return out.reshape(*x.shape[:-1], self.out_features)

    def _padded(self, x: Tensor, least: int) -> Tensor:
        """Return the product of [rows, in], computed with so many rows at least."""
        rows = len(x)
        if rows < least:
            x = torch.nn.functional.pad(x, (0, 0, 0, least - rows))
        return _product(x, self._packed, self.bias, self.out_features)[:rows]


@cache
def _rounds_alike(in_features: int, out_features: int, dtype: Any, threads: int) -> bool:
    """Return whether a layer's products of many rows have the bits of those of few; tried once a machine."""

    def ask() -> bool:
        draws = torch.Generator().manual_seed(0)
        linear = torch.nn.Linear(in_features, out_features, bias=False, device="meta")
        weight = torch.randn(out_features, in_features, generator=draws).to(dtype)
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer, x = PackedLinear(linear), torch.randn(_MANY[-1], in_features, generator=draws).to(dtype)
        few = torch.cat([layer(part) for part in x.split(_FEW)])
        return all(torch.equal(layer(x[:rows]), few[:rows]) for rows in _MANY)

    key = f"packed-{torch.__version__}-{cpu_name()}-{threads}-{dtype}-{in_features}-{out_features}"
    return numerics.answered(key, ask)


def _product(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


# torch.compile treats such a product as its own and fails on weights that it did not pack. It calls opaque
# operators as they are. Such a call is slower, so only compiled steps use it.
_opaque = torch.library.custom_op(
    "specport::packed_linear",
    _product,
    mutates_args=(),
    schema="(Tensor x, Tensor packed, Tensor? bias, int out_features) -> Tensor",
)
_opaque.register_fake(lambda x, packed, bias, out_features: x.new_empty((*x.shape[:-1], out_features)))


def available(dtype: Any) -> bool:
    """Return whether this torch and this CPU support packed layers for a weight type."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(dtype == torch.float32)


def pack(model: Any, *, exact: bool = False) -> None:
    """Replace every linear layer of a model in place. A weight without other references is freed.

    exact: as of `PackedLinear`.
    """
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if type(child) is torch.nn.Linear:
                setattr(module, name, PackedLinear(child, exact=exact))
