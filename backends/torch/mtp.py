"""Run a target's own module for multi-token prediction on slots (`Model.mtp`).

The states that a row brings are written into the cache, beside the keys and values of their tokens, before
the step reads them: so a step's inputs keep their form, which graphs have captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from specport.backends.torch import weights
from specport.backends.torch.devices import Place
from specport.backends.torch.slots.batch import Widths
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.model import SlotModel, piece_of
from specport.backends.torch.slots.step import StepModule
from specport.backends.torch.weight_updates import put

from specport.core.ports import HEAD_INPUT, Row, StepOutput
from specport.errors import InvalidInput, ModelError
from specport.models.kinds.mtp import Join, read_join
from specport.runtime.devices.registry import LoadOptions

if TYPE_CHECKING:
    from torch import Tensor


class Joined(torch.nn.Module):  # type: ignore[misc]
    """Stand for the embeddings of the module's decoder: join those of its target with the states in a cache.

    table: the target's module that embeds tokens [..., n]. dtype: of the result.
    """

    def __init__(self, join: Join, table: Any, cache: SlotCache, dtype: torch.dtype) -> None:
        super().__init__()
        self.table, self._cache, self._epsilon = table, cache, join.epsilon
        self.join = torch.nn.Linear(2 * join.width, join.width, bias=False, dtype=dtype)
        self.join.weight.data = torch.from_numpy(join.weight.copy()).to(dtype)
        self.token_gain = torch.nn.Parameter(torch.from_numpy(join.token_gain.copy()))
        self.state_gain = torch.nn.Parameter(torch.from_numpy(join.state_gain.copy()))

    def forward(self, ids: Tensor) -> Tensor:
        token, state = self._norm(self.table(ids)), self._norm(self._cache.held())
        parts = [self.token_gain * token, self.state_gain * state]
        joined = torch.cat(parts, dim=-1).to(self._cache.shape.dtype)
        found: Tensor = self.join(joined)
        return found

    def _norm(self, x: Tensor) -> Tensor:
        wide = x.float()
        return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self._epsilon)


class SlotMtp(SlotModel):
    """Run a module's decoder, whose embeddings are `Joined`, on the cache that those read."""

    def follow(self, rows: Tensor) -> None:
        """Take new rows [vocab, width] of the target's head."""
        own = rows if self._columns is None else rows[[*self._columns]]
        put(self._decoder.get_output_embeddings(), "weight", own)

    def shares(self, decoder: Any, columns: tuple[int, ...] | None) -> None:
        """Set whose head is made of rows of the target's. columns: ids of these rows; None = all."""
        self._decoder, self._columns = decoder, columns

    def step(self, rows: Sequence[Row]) -> StepOutput:
        refused = self.admit([piece_of(row) for row in rows])
        for i, row in enumerate(rows):
            if i not in refused:
                start, count = row.handle.length, len(row.block)
                held = self.cache.queries[0][row.handle.slot, 0, start : start + count]
                if row.states is None:
                    held.zero_()
                else:
                    held.copy_(row.states)
        return super().step(rows)


def load_mtp(
    target: Any,
    options: LoadOptions,
    place: Place,
    max_context: int,
    budget: Callable[[], int],
) -> SlotMtp | None:
    """Return the module that is to draft for a transformers decoder whose linear layers are not packed yet.

    None where none is to. max_context: of the target. budget: as for `SlotModel`.
    Raises ModelError where the module is not the target's.
    """
    files = options.mtp
    if files is None:
        return None
    if options.exit_layer:
        raise InvalidInput("multi-token prediction and an early exit exclude each other", "choose one")
    weights.move(target, files.name, place.device)  # the device holds the shared tables once
    join, decoder = read_join(files.folder), weights.read(files, None)
    rows = target.get_output_embeddings().weight.detach()
    if rows.shape[1] != join.width or decoder.config.hidden_size != join.width:
        raise ModelError(
            f"the module for multi-token prediction is {join.width} wide, its target {rows.shape[1]}"
        )
    if options.mtp_tokens is not None:
        if max(options.mtp_tokens) >= len(rows):
            raise ModelError(f"a head of {len(rows)} tokens cannot be cut to tokens that it lacks")
        rows = rows[[*options.mtp_tokens]]
    head = torch.nn.Linear(join.width, len(rows), bias=False, device="meta")
    head.weight = torch.nn.Parameter(rows, requires_grad=False)
    cache = SlotCache(decoder.dtype, place.device, join.width)
    decoder.set_input_embeddings(Joined(join, target.get_input_embeddings(), cache, decoder.dtype))
    decoder.set_output_embeddings(head)
    decoder.requires_grad_(False)
    weights.place(decoder, files.name, place.device)
    buckets = options.profile.buckets
    narrow = tuple(width for width in buckets if width <= Widths().most)
    found = SlotMtp(
        place.runner(StepModule(decoder, cache, (HEAD_INPUT,))),
        cache,
        vocab_size=len(rows),
        max_context=max_context,
        widths=Widths(narrow, buckets, 1),
        exact=False,
        static=bool(buckets),
        whole=place.whole,
        hidden_layers=(HEAD_INPUT,),
        budget=budget,
    )
    found.shares(decoder, options.mtp_tokens)
    return found
