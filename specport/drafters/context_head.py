"""Columns for what a cut head lacks: the tokens of the text at hand.

A head of the commonest tokens (FR-Spec, arXiv 2502.14856) cannot say the names and rare words that a text is
about, and those are what it says again and again. Their rows are fetched as they occur, and their logits
are put behind those of the head: a few hundred products beside tens of thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from array_api_compat import array_namespace, device

from specport.core.model_kinds import CutHeadModel
from specport.core.ports import Array
from specport.drafters.growth import DraftHead

MOST = 1024  # tokens of one text; the first ones to occur stay


@dataclass
class _Text:
    """ids: what the head lacks, in the order in which it occurred, with its rows [ids, width]."""

    head: DraftHead
    read: int = 0
    ids: dict[int, None] = field(default_factory=dict)
    rows: Array | None = None


class ContextHead:
    """The head of each text: that of the model, and the tokens of the context.

    What a text's head has depends on that text alone, so that a seed gives the same text twice.
    """

    def __init__(self, model: CutHeadModel, head: DraftHead) -> None:
        self._model, self._head = model, head
        self._texts: dict[int, _Text] = {}

    def follow(self, key: int, context: Sequence[int]) -> None:
        """Take up the tokens that are new in the context."""
        text = self._texts.get(key)
        if text is None or len(context) < text.read:
            text = self._texts[key] = _Text(self._head)
        new = dict.fromkeys(t for t in context[text.read :] if t not in text.ids and self._head.lacks(t))
        text.read = len(context)
        ids = [*new][: MOST - len(text.ids)]
        if ids:
            rows = self._model.head_rows(ids)
            text.rows = rows if text.rows is None else array_namespace(rows).concat([text.rows, rows])
            text.ids |= dict.fromkeys(ids)
            text.head = self._head.with_ids([*text.ids])

    def head(self, key: int) -> DraftHead:
        return self._texts[key].head

    def extended(self, key: int, logits: Array, head_input: Array) -> Array:
        """logits [n, columns] with the columns of the context's tokens behind them.

        head_input: [n, width], of the same step.
        """
        rows = self._texts[key].rows
        if rows is None:
            return logits
        xp = array_namespace(logits)
        more = xp.matmul(xp.astype(head_input, rows.dtype), xp.asarray(rows, device=device(logits)).T)
        return xp.concat([logits, xp.astype(more, logits.dtype)], axis=1)

    def rewind(self, key: int, length: int) -> None:
        """Behind its first `length` tokens the context is another one now."""
        if text := self._texts.get(key):
            text.read = min(text.read, length)

    def forget(self, key: int) -> None:
        self._texts.pop(key, None)
