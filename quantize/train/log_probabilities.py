"""Log-probabilities of a few tokens from a head that is not trained, without the logits of all of them.

The logits of thousands of predictions over a large vocabulary, and what autograd keeps of them, would take
gigabytes, and more time to write and read than to compute. Here they are made block by block, small enough
for a processor's cache, once for the sum over the vocabulary and once more for the gradient (cut
cross-entropy, arXiv 2411.09009).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

_ROWS, _COLUMNS = 256, 4096  # predictions and columns of a block


class HeadPart(NamedTuple):
    """Some columns of a head.

    weight:    [columns, width] their rows of the head.
    forbidden: [predictions or 1, columns] whether a prediction cannot have a column; None = it has all.
    """

    weight: Tensor
    forbidden: Tensor | None = None


def log_probabilities(outputs: Tensor, parts: Sequence[HeadPart], columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return [predictions, k] the log-probabilities of these columns, and [predictions] the highest of all.

    outputs: [predictions, width] the head's inputs. Only they get a gradient, from the first of the results.
    parts:   the head, whose columns are counted from the first part on.
    columns: [predictions, k]; -1 = none, whose log-probability is -inf.
    Logits are computed in the type of autocast where it is on, else in that of `outputs`.
    """
    dtype = computed_in(outputs)
    cast = [HeadPart(part.weight.to(dtype), part.forbidden) for part in parts if len(part.weight)]
    found: tuple[Tensor, Tensor] = _Chosen.apply(outputs, columns, cast)
    return found


def computed_in(outputs: Tensor) -> torch.dtype:
    """Return the type in which logits are computed: that of autocast where it is on."""
    kind = outputs.device.type
    found: torch.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else outputs.dtype
    return found


class _Chosen(torch.autograd.Function):  # type: ignore[misc]
    """See `log_probabilities`."""

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, columns: Tensor, parts: Sequence[HeadPart]
    ) -> tuple[Tensor, Tensor]:
        logs = torch.full(columns.shape, -torch.inf, device=outputs.device)
        best, norms = (torch.empty(len(outputs), device=outputs.device) for _ in range(2))
        for rows in _slices(len(outputs), _ROWS):
            wanted = columns[rows]
            chosen = logs[rows]  # a view
            top = torch.full((len(wanted),), -torch.inf, device=outputs.device)
            total = torch.zeros_like(top)
            for first, logits, _ in _blocks(outputs, rows, parts):
                here, at = _within(wanted, first, logits.shape[1])
                chosen.copy_(torch.where(here, logits.gather(1, at), chosen))
                highest = torch.maximum(top, logits.amax(dim=1))
                # Where all are forbidden so far, the maximum is -inf and the sum 0.
                safe = torch.where(highest.isfinite(), highest, 0.0)
                total = total * torch.exp(top - safe) + logits.sub_(safe[:, None]).exp_().sum(dim=1)
                top = highest
            norms[rows] = top + total.log()
            best[rows] = top - norms[rows]
            chosen -= norms[rows, None]
        ctx.save_for_backward(outputs, columns, norms, logs)
        ctx.parts = parts
        ctx.mark_non_differentiable(best)
        return logs, best

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        outputs, columns, norms, logs = ctx.saved_tensors
        gradient = torch.where(logs.isfinite(), gradient, 0.0)
        total = gradient.sum(dim=1, keepdim=True)
        found = torch.zeros(outputs.shape, device=outputs.device)
        for rows in _slices(len(outputs), _ROWS):
            wanted, given = columns[rows], gradient[rows]
            for first, logits, weight in _blocks(outputs, rows, ctx.parts):
                here, at = _within(wanted, first, logits.shape[1])
                logits.sub_(norms[rows, None]).exp_().mul_(-total[rows])
                logits.scatter_add_(1, at, torch.where(here, given, 0.0))
                found[rows] += logits.to(weight.dtype) @ weight
        return found.to(outputs.dtype), None, None


def _blocks(outputs: Tensor, rows: slice, parts: Sequence[HeadPart]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the first column of each block, its logits [predictions, columns] in float32, and its weight."""
    first = 0
    for part in parts:
        inputs = outputs[rows].to(part.weight.dtype)
        for columns in _slices(len(part.weight), _COLUMNS):
            weight = part.weight[columns]
            logits = (inputs @ weight.T).float()
            if part.forbidden is not None:
                of = part.forbidden if len(part.forbidden) == 1 else part.forbidden[rows]
                logits.masked_fill_(of[:, columns], -torch.inf)
            yield first + columns.start, logits, weight
        first += len(part.weight)


def _within(columns: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Return whether a block of `count` columns has these, and where; any place for those it has not."""
    return (columns >= first) & (columns < first + count), (columns - first).clamp(0, count - 1)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
