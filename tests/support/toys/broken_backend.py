"""Backends with one fault each, for the proof that the conformance suite finds it.

The example's numpy model with one method broken. A profile names the fault as its device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from specport_numpy import NumpyBackend, NumpyModel, NumpySequence

from specport.core.ports import Block, Refusal, Row, StepOutput
from specport.errors import ContextFull, ModelError
from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded, LoadOptions


class Rollback(NumpyModel):
    """Keeps the last token of the block where the last accepted one belongs."""

    def commit(self, handle: NumpySequence, nodes: Sequence[int]) -> None:
        if 0 < len(nodes) < len(handle.new):
            handle.new[nodes[-1]] = handle.new[-1]
        super().commit(handle, nodes)


class Path(NumpyModel):
    """Does not bring the rows of kept tokens together: right for beginnings of chains only."""

    def commit(self, handle: NumpySequence, nodes: Sequence[int]) -> None:
        for i, node in enumerate(handle.pending.checked_nodes(nodes)):
            handle.new[node] = handle.new[i]
        super().commit(handle, nodes)


class Batch(NumpyModel):
    """Rounds differently when several rows share a step."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        return replace(output, logits=output.logits * (1 + 1e-12 * (len(rows) > 1)))


class Mask(NumpyModel):
    """Lets every token of a tree see all tokens before it."""

    def _run(self, handle: NumpySequence, block: Block) -> Any:
        return super()._run(handle, replace(block, visible=None))


class Causal(NumpyModel):
    """Never lets a token see a later one, whatever the mask says: right for trees."""

    def _run(self, handle: NumpySequence, block: Block) -> Any:
        seen = None if block.visible is None else np.tril(block.visible)
        return super()._run(handle, replace(block, visible=seen))


class Places(NumpyModel):
    """Takes a token's place among those it sees for its position: right for chains and trees."""

    def _run(self, handle: NumpySequence, block: Block) -> Any:
        if block.visible is not None:
            block = replace(block, positions=tuple(int(n) - 1 for n in block.visible.sum(axis=1)))
        return super()._run(handle, block)


class Leak(NumpyModel):
    """Never gives a closed sequence's cache back."""

    def close(self, handle: NumpySequence) -> None:
        self.__dict__.setdefault("_kept", []).append(handle.cache)
        super().close(handle)


class Commit(NumpyModel):
    """Takes any tokens for a path, though it says that it cannot gather."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.capabilities = replace(self.capabilities, gather=False)


class Limit(NumpyModel):
    """Throws the last token of a sequence away when its row is refused."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        for i in output.refused:
            self.truncate(rows[i].handle, rows[i].handle.length - 1)
        return output


class Raises(NumpyModel):
    """Ends the whole step where one row does not fit, as the port once was."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        if output.refused:
            raise ContextFull("a row does not fit")
        return output


class Hostage(NumpyModel):
    """Refuses all rows of a step where one does not fit."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        if not output.refused:
            return output
        refused: Mapping[int, Refusal] = dict.fromkeys(range(len(rows)), next(iter(output.refused.values())))
        return replace(output, refused=refused, logits=output.logits[:0], offsets=(0,) * (len(rows) + 1))


class Refusing(NumpyModel):
    """Leaks a bit of cache with every row that it refuses."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        self._most -= 8 * len(output.refused)
        return output


class Boasts(NumpyModel):
    """Says that there is more room than there is."""

    def room(self, handle: NumpySequence | None = None) -> int:
        room = super().room(handle)
        return min(room + 1, self.max_context - (handle.length if handle else 0))


class Evicts(NumpyModel):
    """Makes room for a row in the cache of another sequence."""

    def _refusal(self, handle: NumpySequence, block: Block) -> Refusal | None:
        why = super()._refusal(handle, block)
        if why == "cache":
            for other in self._open:
                if other is not handle:
                    other.cache[:4] = 0
        return why


class Shares(NumpyModel):
    """A fork shares memory with its origin, and both write to it."""

    def fork(self, handle: NumpySequence, length: int) -> NumpySequence:
        new = super().fork(handle, length)
        new.cache = handle.cache[:]
        return new


class Keeps(NumpyModel):
    """A block that is kept stays a part of its sequence, which writes over it."""

    def read_rows(self, handle: NumpySequence, start: int, stop: int) -> Any:
        return handle.cache[start:stop].reshape(-1).view(np.uint8)


class Forks(NumpyModel):
    """Never gives the cache of a fork back."""

    def fork(self, handle: NumpySequence, length: int) -> NumpySequence:
        new = super().fork(handle, length)
        self._most -= length
        return new


class Pending(NumpyModel):
    """A fork takes the tokens of a step that was not committed for committed ones."""

    def fork(self, handle: NumpySequence, length: int) -> NumpySequence:
        if handle.length < length <= handle.length + len(handle.pending):
            return super().fork(handle, handle.length)
        return super().fork(handle, length)


class Law(NumpyModel):
    """Sharper logits where several tokens are verified: the same greedy text, another sampling law."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        wide = any(len(row.block) > 1 for row in rows)
        return replace(output, logits=output.logits * (1.3 if wide else 1))


class Greedy(NumpyModel):
    """Decides near-ties anew where several tokens are verified."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        if any(len(row.block) > 1 for row in rows):
            output.logits[:, ::2] += 0.3
        return output


class Hidden(NumpyModel):
    """Gives one layer's states for another's."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        return replace(output, hidden=dict.fromkeys(output.hidden, next(iter(output.hidden.values()), None)))


class Stale(NumpyModel):
    """Gives the hidden states of an earlier step where they have the same shape."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        if not output.hidden:
            return output
        last = self.__dict__.get("_last", output.hidden)
        self._last = output.hidden
        same = [a.shape for a in last.values()] == [a.shape for a in output.hidden.values()]
        return replace(output, hidden=last if same else output.hidden)


class Offsets(NumpyModel):
    """Finds a row's hidden states where its logits would be."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        return replace(output, hidden_offsets=output.offsets)


class Scores(NumpyModel):
    """Gives logits of the last token where none are asked for."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        return super().step([replace(r, logits="last") if r.logits == "none" else r for r in rows])


class Joins(NumpyModel):
    """Mixes up the first two rows in the step in which their number changes."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        before = self.__dict__.get("_rows", len(rows))
        self._rows = len(rows)
        if before == len(rows) or len(rows) < 2 or len(output.logits) < 2:
            return output
        return replace(output, logits=output.logits[[1, 0, *range(2, len(output.logits))]])


class Deaf(NumpyModel):
    """Takes conditioning and ignores it, though it says that it takes none."""

    def open(self, capacity: int = 0, conditioning: Any = None) -> NumpySequence:
        return super().open(capacity)


class Listens(Deaf):
    """The same, and says that it takes it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.capabilities = replace(self.capabilities, conditioning=True)


MODELS: dict[str, type[NumpyModel]] = {
    "rollback": Rollback, "path": Path, "batch": Batch, "mask": Mask, "causal": Causal, "places": Places,
    "leak": Leak, "commit": Commit, "limit": Limit, "raises": Raises, "hostage": Hostage,
    "refusing": Refusing, "boasts": Boasts, "evicts": Evicts, "shares": Shares, "keeps": Keeps,
    "forks": Forks, "pending": Pending, "law": Law, "greedy": Greedy, "hidden": Hidden, "stale": Stale,
    "offsets": Offsets, "scores": Scores, "joins": Joins, "deaf": Deaf, "listens": Listens,
}  # fmt: skip


class BrokenBackend(NumpyBackend):
    name = "broken"

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        fault = options.profile.device
        if fault == "load":
            raise ModelError("the device took fire", "call the fire brigade")
        if fault == "crash":
            os._exit(3)
        model = NumpyModel if options.role == "draft" else MODELS[fault]
        return Loaded(model(files.folder, options.max_context, options.hidden_layers, options.cache_bytes))


backend = BrokenBackend()
