"""Self-speculation: the target's first layers draft on the target's cache (LayerSkip, arXiv 2404.16710)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specport.core.ports import Array, Block, DraftRequest, Model, Row, StepOutput
from specport.drafters.model.head import DraftHead
from specport.drafters.model.reading import Level


class ExitCache:
    """Implement `Reading` on the target's cache, which already holds the context.

    The target's next step reuses and discards the draft, so nothing is rolled back here.

    Raises ValueError for a target without an early exit.
    """

    tree = False  # drafts are chains in the target's own cache

    def __init__(self, model: Model) -> None:
        if model.early_exit is None:
            raise ValueError("the target has no early exit")
        self._model, self._exit, self._head = model, model.early_exit, DraftHead(model.vocab_size)
        self.batch = model.capabilities.batch
        self._handles: dict[int, Any] = {}

    def fits(self, request: DraftRequest) -> bool:
        room: int = self._model.max_context - request.handle.length
        return 1 + request.plan.max_nodes <= room

    def behind(self, request: DraftRequest) -> int:
        return 1

    def head(self, key: int) -> DraftHead:
        return self._head

    def catch_up(self, requests: Sequence[DraftRequest]) -> list[Array | None]:
        for request in requests:
            # Discard an earlier draft that was not verified.
            self._model.truncate(request.handle, request.handle.length)
            self._handles[request.key] = request.handle
        output = self._draft([(r.key, Block.chain(r.context[-1:])) for r in requests])
        return [
            None if i in output.refused else output.logits[output.offsets[i], :] for i in range(len(requests))
        ]

    def chains(self, requests: Sequence[DraftRequest]) -> None:
        """Return None: no model with an early exit drafts greedy chains in one call."""

    def score(self, rows: Sequence[Level]) -> list[list[Array]]:
        """Score each tree, which is a chain, and keep all its tokens."""
        output = self._draft([(row.key, row.tree.as_block()) for row in rows])
        return [
            [] if i in output.refused else [output.logits[output.offsets[i] + node, :] for node in row.asked]
            for i, row in enumerate(rows)
        ]

    def _draft(self, blocks: Sequence[tuple[int, Block]]) -> StepOutput:
        return self._exit.draft([Row(self._handles[key], block) for key, block in blocks])

    def forget(self, key: int) -> None:
        self._handles.pop(key, None)

    def rewind(self, key: int, length: int) -> None:
        """Do nothing: the target's cache always agrees with the context."""
