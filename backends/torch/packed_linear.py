"""Linear layers for processors: weights packed once in oneDNN's own layout.

torch's matrix products on a processor go to MKL in f32, whose rounding depends on the number of rows, and in
bf16 to oneDNN, which then packs the weight anew at every call. Packed weights are what torch's own compiler
uses (`torch._inductor`, freezing); called directly they are read at the speed of memory, and two rows or
more round bit-identically however many there are, which is what makes exact mode cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 8  # what the layout is chosen for; it serves any number


class PackedLinear(torch.nn.Module):  # type: ignore[misc]
    """What a `torch.nn.Linear` computes, without its gradient."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            called: Tensor = _opaque(x, self._packed, self.bias, self.out_features)
            return called
        return _product(x, self._packed, self.bias, self.out_features)


def _product(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


# torch.compile takes such a product for one of its own and fails on a weight that it has not packed itself;
# what it cannot look into it calls as it is. Calling it that way costs more, so that only compiled steps do.
_opaque = torch.library.custom_op(
    "specport::packed_linear",
    _product,
    mutates_args=(),
    schema="(Tensor x, Tensor packed, Tensor? bias, int out_features) -> Tensor",
)
_opaque.register_fake(lambda x, packed, bias, out_features: x.new_empty((*x.shape[:-1], out_features)))


def available(dtype: Any) -> bool:
    """Whether this torch and this processor have packed layers for a type of weights."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(dtype == torch.float32)


def pack(model: Any) -> None:
    """Replace every linear layer of a model in place; a weight that nothing else holds is freed."""
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if type(child) is torch.nn.Linear:
                setattr(module, name, PackedLinear(child))
