"""Self-speculation: the target's own first layers draft, on its own cache (LayerSkip, arXiv 2404.16710)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specport.core.model_kinds import EarlyExitModel
from specport.core.ports import Array, DraftRequest, Row, StepOutput
from specport.core.tree import TokenTree
from specport.drafters.model.expand import DraftHead
from specport.drafters.model.kv_cache import Level


class ExitCache:
    """The target's cache, as a `Reading`: the context is there already, and nothing needs rolling back.

    What is drafted, the target's next step takes over and forgets.
    """

    tree = False  # what is drafted is a chain in the target's own cache

    def __init__(self, model: EarlyExitModel) -> None:
        self._model, self._head = model, DraftHead(model.vocab_size)
        self.batch = model.capabilities.batch
        self._handles: dict[int, Any] = {}

    def fits(self, request: DraftRequest) -> bool:
        room: int = self._model.max_context - request.handle.length
        return 1 + request.plan.max_nodes <= room

    def behind(self, request: DraftRequest) -> int:
        return 1

    def head(self, key: int) -> DraftHead:
        return self._head

    def catch_up(self, requests: Sequence[DraftRequest]) -> list[Array]:
        for request in requests:
            # A draft that nobody verified is in the way.
            self._model.truncate(request.handle, request.handle.length)
            self._handles[request.key] = request.handle
        output = self._draft([TokenTree.chain(r.context[-1:]) for r in requests], [r.key for r in requests])
        return [output.logits[offset, :] for offset in output.offsets[:-1]]

    def chains(self, requests: Sequence[DraftRequest]) -> None:
        """No model with an early exit drafts on its own."""

    def score(self, rows: Sequence[Level]) -> list[list[Array]]:
        """Keeps all of each tree, which is a chain."""
        output = self._draft([row.tree for row in rows], [row.key for row in rows])
        return [
            [output.logits[first + node, :] for node in row.asked]
            for row, first in zip(rows, output.offsets[:-1], strict=True)
        ]

    def _draft(self, trees: Sequence[TokenTree], keys: Sequence[int]) -> StepOutput:
        rows = [Row(self._handles[key], tree) for key, tree in zip(keys, trees, strict=True)]
        return self._model.draft(rows)

    def forget(self, key: int) -> None:
        self._handles.pop(key, None)

    def rewind(self, key: int, length: int) -> None:
        """The cache is the target's: it never holds what the context does not."""
