"""A recurrent draft head on its target's hidden states: the `HiddenHead` port on torch.

`RecurrentCell` is the network itself, which training uses too; `models/kinds/recurrent.py` has the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from specport.core.ports import HeadChains
from specport.errors import ModelError
from specport.models.kinds.recurrent import EPSILON, Recurrent, dequantized, read_weights

if TYPE_CHECKING:
    from torch import Tensor

_TOGETHER = 4  # tokens drafted before the host waits for an accelerator


class RecurrentCell(torch.nn.Module):  # type: ignore[misc]
    """Hold the weights of a head, by the names of `Recurrent`, as float32 parameters that are not set yet."""

    def __init__(self, shape: Recurrent) -> None:
        super().__init__()
        self.shape = shape
        for name, size in shape.matrices.items():
            self.register_parameter(_slot(name), torch.nn.Parameter(torch.zeros(size)))
        for name, length in shape.vectors.items():
            self.register_parameter(_slot(name), torch.nn.Parameter(torch.zeros(length)))

    def weight(self, name: str) -> Tensor:
        """Return a parameter by its name in `Recurrent`."""
        return getattr(self, _slot(name))

    def begin(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return the first states [..., width]. hidden: of each layer, [..., width]."""
        joined = torch.cat([_norm(states) for states in hidden], dim=-1)
        return self._product(self.weight("enter.gain") * joined, "enter")

    def step(self, states: Tensor, embedded: Tensor) -> Tensor:
        """Return the states behind tokens [..., width]. embedded: their embeddings [..., width]."""
        parts = [self.weight("state.gain") * _norm(states), self.weight("token.gain") * _norm(embedded)]
        y = self.weight("keep") * states + self._product(torch.cat(parts, dim=-1), "join")
        for i in range(self.shape.blocks):
            up = self._product(self.weight(f"block.{i}.gain") * _norm(y), f"block.{i}.up")
            gate, value = up.chunk(2, dim=-1)
            y = y + self._product(torch.nn.functional.silu(gate) * value, f"block.{i}.down")
        return y

    def out(self, states: Tensor) -> Tensor:
        """Return the input [..., width] of the language-model head."""
        return self.weight("out.gain") * _norm(states)

    def _product(self, x: Tensor, name: str) -> Tensor:
        weight = self.weight(name)
        return torch.nn.functional.linear(x.to(weight.dtype), weight)


def _slot(name: str) -> str:
    return name.replace(".", "_")


def _norm(x: Tensor) -> Tensor:
    """Return x / sqrt(mean(x^2) + EPSILON), in float32."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + EPSILON)


class RecurrentHead:
    """Run a head with the embeddings and rows of the language-model head of its target.

    cell:    on the target's device.
    columns: ids of the columns of the logits; None = all.
    table:   module that embeds tokens [n].
    rows:    [columns, width] rows of the target's head.
    """

    def __init__(
        self, cell: RecurrentCell, columns: tuple[int, ...] | None, table: Any, rows: Tensor
    ) -> None:
        self.layers, self.columns = cell.shape.layers, columns
        self._cell, self._table, self._rows = cell, table, rows
        self._ids = None if columns is None else torch.tensor(columns, device=rows.device)
        self.together = 1 if rows.device.type == "cpu" else _TOGETHER

    def follow(self, rows: Tensor) -> None:
        """Take new rows [vocab, width] of the target's head, which may be the memory of the old ones."""
        self._rows.copy_(rows if self._ids is None else rows[self._ids.to(rows.device)])

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def begin(self, hidden: Mapping[int, Tensor]) -> Tensor:
        return self._cell.begin([hidden[layer] for layer in self.layers])

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def step(self, states: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self._step(states, torch.tensor([*tokens], device=self._rows.device))

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def draft(self, states: Tensor, tokens: Sequence[int], depth: int) -> HeadChains:
        ids = torch.tensor([*tokens], device=self._rows.device)
        found, confidences = [], []
        for _ in range(depth):
            logits, states = self._step(states, ids)
            best, column = logits.max(dim=1, keepdim=True)
            confidences.append(1.0 / (logits - best).exp().sum(dim=1))
            ids = column[:, 0] if self._ids is None else self._ids[column[:, 0]]
            found.append(ids)
        # One copy to the host: ids are exact in float64.
        packed = torch.cat([torch.stack(part, dim=1).double() for part in (found, confidences)]).cpu().numpy()
        chosen, chances = packed[: len(tokens)], packed[len(tokens) :]
        return HeadChains(chosen.astype("int64"), chances.astype("float32"), states)

    def _step(self, states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        states = self._cell.step(states, self._table(ids).float())
        read = self._cell.out(states).to(self._rows.dtype)
        return torch.nn.functional.linear(read, self._rows).float(), states


def load_head(
    folder: Path, shape: Recurrent, columns: tuple[int, ...] | None, target: Any, device: str
) -> RecurrentHead:
    """Return the head in `folder` on a transformers decoder whose linear layers are not packed yet.

    columns: ids of the columns of its logits; None = all.
    Raises ModelError for a target of another width or without these ids.
    """
    weight = target.get_output_embeddings().weight
    if weight.shape[1] != shape.width:
        raise ModelError(f"the draft head is {shape.width} wide, its target {weight.shape[1]}")
    if columns is not None and max(columns) >= weight.shape[0]:
        raise ModelError(f"the draft head has tokens that its target of {weight.shape[0]} lacks")
    cell = RecurrentCell(shape)
    with torch.no_grad():
        for name, values in dequantized(read_weights(folder, shape), shape).items():
            cell.weight(name).copy_(torch.from_numpy(values))
            if name in shape.matrices:
                cell.weight(name).data = cell.weight(name).data.to(weight.dtype)
    rows = weight.detach()[[*columns]] if columns is not None else weight.detach()
    cell.requires_grad_(False).to(device)
    return RecurrentHead(cell, columns, target.get_input_embeddings(), rows.to(device))
