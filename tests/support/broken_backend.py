"""Backends with one fault each, for the proof that the conformance suite finds it.

The example's numpy model with one method broken. A profile names the fault as its device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from specport_numpy import NumpyBackend, NumpyModel, NumpySequence

from specport.core.ports import Row, StepOutput
from specport.core.tree import TokenTree
from specport.errors import ContextFull, ModelError
from specport.models.source import ModelFiles
from specport.runtime.registry import Loaded, LoadOptions


class Rollback(NumpyModel):
    """Keeps the rows of rejected tokens where those of accepted ones belong."""

    def commit(self, handle: NumpySequence, kept: Sequence[int]) -> None:
        if 0 < len(kept) < len(handle.pending):
            handle.pending[kept[-1]] = handle.pending[-1]
        super().commit(handle, kept)


class Path(NumpyModel):
    """Does not bring the rows of an accepted path together: right for chains only."""

    def commit(self, handle: NumpySequence, kept: Sequence[int]) -> None:
        for i, node in enumerate(kept):
            if node < len(handle.pending):
                handle.pending[node] = handle.pending[i]
        super().commit(handle, kept)


class Batch(NumpyModel):
    """Rounds differently when several rows share a step."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        return replace(output, logits=output.logits * (1 + 1e-12 * (len(rows) > 1)))


class Mask(NumpyModel):
    """Lets every node of a tree see all nodes before it."""

    def _token(self, handle: NumpySequence, tree: TokenTree, node: int) -> Any:
        return super()._token(handle, TokenTree.chain(tree.tokens), node)


class Leak(NumpyModel):
    """Never gives a closed sequence's cache back."""

    def close(self, handle: NumpySequence) -> None:
        self.__dict__.setdefault("_kept", []).append(handle.cache)
        super().close(handle)


class Commit(NumpyModel):
    """Takes any nodes for a path."""

    def commit(self, handle: NumpySequence, kept: Sequence[int]) -> None:
        handle.pending = [handle.pending[node] for node in kept if 0 <= node < len(handle.pending)]
        handle.tree = TokenTree.chain([0] * len(handle.pending))
        super().commit(handle, range(len(handle.pending)))


class Limit(NumpyModel):
    """Says that the context is full after it has thrown the last token away."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        try:
            return super().step(rows)
        except ContextFull:
            for row in rows:
                self.truncate(row.handle, row.handle.length - 1)
            raise


class Law(NumpyModel):
    """Sharper logits where several tokens are verified: the same greedy text, another sampling law."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        return replace(output, logits=output.logits * (1.3 if any(len(row.tree) > 1 for row in rows) else 1))


class Greedy(NumpyModel):
    """Decides near-ties anew where several tokens are verified."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        if any(len(row.tree) > 1 for row in rows):
            output.logits[:, ::2] += 0.3
        return output


class Hidden(NumpyModel):
    """Gives one layer's states for another's."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        return replace(output, hidden=dict.fromkeys(output.hidden, next(iter(output.hidden.values()), None)))


MODELS = {
    "rollback": Rollback, "path": Path, "batch": Batch, "mask": Mask, "leak": Leak,
    "commit": Commit, "limit": Limit, "law": Law, "greedy": Greedy, "hidden": Hidden,
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
        return Loaded(model(files.folder, options.max_context, options.hidden_layers))


backend = BrokenBackend()
