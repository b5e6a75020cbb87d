"""Compute attention over cache slots for transformers' decoders: windows, soft caps and attention sinks."""

from __future__ import annotations

from threading import local
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION = "specport"  # the name under which transformers knows `attention`
# On a CPU, torch computes the rows of a head in blocks of 32, each a matrix product. Products of fewer than
# 16 rows round differently, so such a block is padded. From 192 rows on torch uses other blocks, so at most
# 160 rows are passed at once.
_BLOCK, _FEWEST, _MOST = 32, 16, 160


class _Layouts(local):
    """Hold the layouts of the masks of a thread's current step, each used by many layers.

    known: id of a mask -> the mask, and its layout by number of groups.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}


_layouts = _Layouts()
_MASKS = 4  # a decoder that cuts a mask anew for each layer is not to fill the memory


def forget_layouts() -> None:
    """Drop what was laid out for a step."""
    _layouts.known.clear()


def _laid_out(mask: Tensor, groups: int) -> Tensor:
    """Return a mask [slots, 1, new, length] as [slots, 1, rows, length], padded.

    groups: heads that share keys and values; their queries become rows.
    """
    if torch.compiler.is_compiling():
        return _lay_out(mask, groups)
    known = _layouts.known
    if id(mask) not in known:
        if len(known) == _MASKS:
            known.clear()
        known[id(mask)] = (mask, {})
    found = known[id(mask)][1]
    if groups not in found:
        found[groups] = _lay_out(mask, groups)
    return found[groups]


def _lay_out(mask: Tensor, groups: int) -> Tensor:
    mask = mask.repeat(1, 1, groups, 1)
    count = mask.shape[2]
    if mask.device.type == "cpu" and 0 < (missing := _FEWEST - count % _BLOCK) < _FEWEST:
        mask = torch.nn.functional.pad(mask, (0, 0, 0, missing))
    return mask


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """Compute grouped-query attention without copies of keys and values: a group's queries become rows.

    query:          [slots, heads, new, width]
    key, value:     [slots, kv heads, length, width]
    attention_mask: [slots, 1, new, length], of `StepModule`.
    options:        `scaling`; `softcap` of Gemma 2; `s_aux`, the attention sink of each head of gpt-oss.
    """
    slots, heads, new, width = query.shape
    groups = heads // key.shape[1]
    count = groups * new
    attention_mask = _laid_out(attention_mask, groups)
    rows = query.reshape(slots, key.shape[1], count, width)
    if missing := attention_mask.shape[2] - count:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, missing))
    scale, cap, sinks = options.get("scaling"), options.get("softcap"), options.get("s_aux")
    if cap is not None or sinks is not None:
        out = _by_hand(rows, key, value, attention_mask, scale or width**-0.5, cap, sinks, new)
    elif count <= _MOST or query.device.type != "cpu":
        out = _attend(rows, key, value, attention_mask, scale=scale)
    else:
        pieces = zip(rows.split(_MOST, dim=2), attention_mask.split(_MOST, dim=2), strict=True)
        out = torch.cat([_attend(part, key, value, seen, scale=scale) for part, seen in pieces], dim=2)
    if missing:
        out = out[:, :, :count]
    out = out.reshape(slots, heads, new, value.shape[3]).transpose(1, 2)
    return out.contiguous(), None  # some layers take a view of it


_attend = torch.nn.functional.scaled_dot_product_attention


def _by_hand(
    rows: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    cap: float | None,
    sinks: Tensor | None,
    new: int,
) -> Tensor:
    """Compute what torch's own attention cannot: it has neither caps nor sinks.

    rows: [slots, kv heads, rows, width]; `new` rows for each head of a group, then padding.
    """
    scores = torch.matmul(rows, key.transpose(2, 3)).float() * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores + mask
    if sinks is None:
        return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)
    # A sink is one more column, which takes weight and adds nothing.
    heads = sinks.float().view(1, key.shape[1], -1, 1).expand(-1, -1, -1, new).flatten(2)
    column = torch.nn.functional.pad(heads, (0, rows.shape[2] - heads.shape[2]))[..., None]
    joined = torch.cat([scores, column.expand(len(rows), -1, -1, -1)], dim=3)
    return torch.matmul(joined.softmax(dim=-1)[..., :-1].to(value.dtype), value)
