"""Hold the states of layers without keys and values: of a gated delta net, of a short convolution.

Such a layer has one state a sequence instead of a row a token, and a token's update overwrites it. To go back
to any token of a step, each slot has several entries: a step reads the entry behind each token's parent and
writes another for each token, so that discarding tokens is a choice of entry, also between branches. A long
row is read in pieces, which write the entry behind their last token only.

Layers compute token by token, with the operators of one token: a chunked form (matrix products over many
tokens) would round by how tokens are split over steps. Projections stay as wide as the step. Without exact
mode, long pieces are read in transformers' chunked form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WIDEST = 16  # most tokens of a step that keeps a state a token
MARKS = 2  # entries for the ends of prompts, which later turns of a chat go back to
# Entry 0 is never written: the state of an empty text. The last one is for what nobody reads.
ENTRIES = 1 + WIDEST + 1 + MARKS + 1
EMPTY, UNREAD = 0, ENTRIES - 1

# none: the decoder has no such layers. each: write a state a token. last: only that behind the last token.
Keep = Literal["none", "each", "last"]


@dataclass(frozen=True)
class StateShape:
    """Hold the size of one state, and its type (torch.dtype)."""

    size: tuple[int, ...]
    dtype: Any

    @property
    def nbytes(self) -> int:
        return int(torch.Size(self.size).numel() * self.dtype.itemsize)


@dataclass(frozen=True)
class _Step:
    """Hold where the current step reads and writes, as rows of the store."""

    keep: Keep
    sources: list[Tensor]  # [slots] for each token; where only the last state is kept, for the first token
    targets: list[Tensor]
    last: Tensor  # [slots, 1] index of the last token
    real: Tensor  # [slots, new] whether a token is one of the row, not padding


class StateStore:
    """Hold a tensor [slots * ENTRIES, ...] for each state of the decoder.

    A store without tensors notes the shapes of the states that a step asks for, and answers with empty ones.

    chunked: whether long pieces may be read in a form whose rounding depends on the split.
    """

    def __init__(self) -> None:
        self.chunked = False
        self.tensors: list[Tensor] = []
        self.shapes: dict[int, StateShape] = {}
        self._step: _Step | None = None

    def resize(self, slots: int, device: str) -> None:
        """Give each tensor another number of slots; what both sizes hold stays where it is."""
        for i, shape in sorted(self.shapes.items()):
            new = torch.zeros((slots * ENTRIES, *shape.size), dtype=shape.dtype, device=device)
            if i < len(self.tensors):
                kept = min(len(new), len(self.tensors[i]))
                new[:kept] = self.tensors[i][:kept]
                self.tensors[i] = new
            else:
                self.tensors.append(new)

    def at(self, keep: Keep, first: int, sources: Tensor, targets: Tensor, counts: Tensor) -> None:
        """Set where the next step reads and writes.

        first:   first slot.
        sources: [slots, new] entry behind each token's parent.
        targets: [slots, new] entry that each token writes.
        counts:  [slots] number of tokens that are no padding.
        """
        slots, new = sources.shape
        begin = (torch.arange(slots, device=sources.device) + first)[:, None] * ENTRIES
        width = new if keep == "each" else 1
        self._step = _Step(
            keep,
            [*(begin + sources)[:, :width].unbind(1)],
            [*(begin + targets)[:, :width].unbind(1)],
            (counts - 1).clamp(min=0)[:, None],
            torch.arange(new, device=sources.device) < counts[:, None],
        )

    def move(self, slot: Tensor, to: Tensor, source: int, target: int) -> None:
        """Copy an entry of a slot [1] to an entry of the slot `to` [1], in every layer."""
        for tensor in self.tensors:
            tensor.index_copy_(0, to * ENTRIES + target, tensor.index_select(0, slot * ENTRIES + source))

    def convolve(self, which: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return a causal convolution of each channel with the last tokens, [slots, channels, new].

        which:  number of the state, which holds the last `taps` - 1 inputs [channels, taps - 1].
        x:      [slots, channels, new].
        weight: [channels, taps].
        """
        taps, step = weight.shape[1], self._of(which, StateShape((x.shape[1], weight.shape[1] - 1), x.dtype))
        wide = weight.float()

        def weighed(inputs: Callable[[int], Tensor]) -> Tensor:
            # Tap by tap, so that the sum's order does not depend on the number of tokens.
            total = inputs(0).float() * wide[:, 0, None]
            for i in range(1, taps):
                total = total + inputs(i).float() * wide[:, i, None]
            return (total if bias is None else total + bias.float()[:, None]).to(x.dtype)

        if step.keep == "each":
            found = []
            for j in range(x.shape[2]):
                seen = torch.cat([self._read(which, step.sources[j], x), x[:, :, j : j + 1]], dim=2)
                self._write(which, step.targets[j], seen[:, :, 1:])
                found.append(weighed(lambda i, seen=seen: seen[:, :, i : i + 1]))  # type: ignore[misc]
            return torch.cat(found, dim=2)
        seen = torch.cat([self._read(which, step.sources[0], x), x], dim=2)
        where = step.last + 1 + torch.arange(taps - 1, device=x.device)
        behind = seen.gather(2, where[:, None].expand(-1, x.shape[1], -1))
        self._write(which, step.targets[0], behind)
        return weighed(lambda i: seen[:, :, i : i + x.shape[2]])

    def recur(self, which: int, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        """Return the outputs [slots, new, heads, value width] of the gated delta rule (arXiv 2412.06464).

        The state S [key width, value width] of a head becomes exp(g) S, then S + k (beta (v - k S)); the
        output is q S.

        query, key: [slots, new, heads, key width], of length 1, the query scaled.
        value:      [slots, new, heads, value width].
        g, beta:    [slots, new, heads].
        """
        size = (key.shape[2], key.shape[3], value.shape[3])
        step = self._of(which, StateShape(size, torch.float32))
        decay = _exp(g.float())[..., None, None]
        beta = beta.float()[..., None]
        if step.keep != "each":  # padding leaves the state as it is
            decay = torch.where(step.real[:, :, None, None, None], decay, 1.0)
            beta = torch.where(step.real[:, :, None, None], beta, 0.0)
        query, key, value = query.float()[..., None], key.float()[..., None], value.float()
        found = []
        state = self._read(which, step.sources[0], value)
        for j in range(value.shape[1]):
            if j and step.keep == "each":
                state = self._read(which, step.sources[j], value)
            state = state * decay[:, j]
            delta = (value[:, j] - (state * key[:, j]).sum(dim=-2)) * beta[:, j]
            state = state + key[:, j] * delta[:, :, None]
            found.append((state * query[:, j]).sum(dim=-2))
            if step.keep == "each":
                self._write(which, step.targets[j], state)
        if step.keep != "each":
            self._write(which, step.targets[0], state)
        return torch.stack(found, dim=1)

    def recur_chunked(
        self, which: int, rule: Any, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor
    ) -> Tensor | None:
        """Return what `recur` does, computed by transformers' own `rule`; None where a step needs each state.

        query, key: not normalised; `rule` does that.
        """
        size = (key.shape[2], key.shape[3], value.shape[3])
        step = self._of(which, StateShape(size, torch.float32))
        if not self.chunked or step.keep == "each":
            return None
        g, beta = (torch.where(step.real[:, :, None], part, 0.0) for part in (g, beta))
        state = self._read(which, step.sources[0], value)
        options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
        found, state = rule(query, key, value, g=g, beta=beta, initial_state=state, **options)
        self._write(which, step.targets[0], state)
        out: Tensor = found
        return out

    def _of(self, which: int, shape: StateShape) -> _Step:
        """Return the current step, after a look at a state's shape."""
        assert self._step is not None  # set by `at`
        if not self.tensors:
            self.shapes[which] = shape
        return self._step

    def _read(self, which: int, rows: Tensor, like: Tensor) -> Tensor:
        if not self.tensors:
            shape = self.shapes[which]
            return torch.zeros((len(rows), *shape.size), dtype=shape.dtype, device=like.device)
        return self.tensors[which].index_select(0, rows)

    def _write(self, which: int, rows: Tensor, state: Tensor) -> None:
        if self.tensors:
            self.tensors[which].index_copy_(0, rows, state.to(self.tensors[which].dtype))


def _exp(x: Tensor) -> Tensor:
    """Return exp(x), each number rounded alike wherever it stands: torch computes the numbers behind the
    last full vector register by another function."""
    return x[..., None].expand(*x.shape, 16).contiguous().exp()[..., 0]
