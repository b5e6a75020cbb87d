"""Columns for what a cut head lacks: the tokens of the text at hand.

A head of the commonest tokens (FR-Spec, arXiv 2502.14856) cannot say the names and rare words that a text is
about, and those are what it says again and again. Their rows are fetched as they occur, and their logits
are put behind those of the head: a few hundred products beside tens of thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from array_api_compat import array_namespace, device

from specport.core.model_kinds import CutHeadModel
from specport.core.ports import Array, Model, StepOutput
from specport.drafters.model.expand import DraftHead

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

    What a text's head has depends on that text alone, so that a seed gives the same text twice. Where a model
    has no rows to give, every text has the head as it is.
    """

    def __init__(self, model: Model, head: DraftHead) -> None:
        self._model = cast(CutHeadModel, model) if model.capabilities.head_rows else None
        self._head = head
        self._texts: dict[int, _Text] = {}

    def follow(self, key: int, context: Sequence[int]) -> None:
        """Take up the tokens that are new in the context."""
        if self._model is None:
            return
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
        """What the columns of this text's logits are."""
        text = self._texts.get(key)
        return self._head if text is None else text.head

    def logits(self, key: int, output: StepOutput, nodes: Sequence[int]) -> list[Array]:
        """[columns] each, behind these rows of a step, all of one text."""
        text = self._texts.get(key)
        if text is None or text.rows is None:
            return [output.logits[node, :] for node in nodes]
        assert output.head_input is not None  # the model has the rows of its head
        xp, where = array_namespace(output.logits), device(output.logits)
        picked = xp.asarray([*nodes], device=where)
        own, read = (xp.take(array, picked, axis=0) for array in (output.logits, output.head_input))
        more = xp.matmul(xp.astype(read, text.rows.dtype), xp.asarray(text.rows, device=where).T)
        whole = xp.concat([own, xp.astype(more, own.dtype)], axis=1)
        return [whole[i, :] for i in range(len(nodes))]

    def rewind(self, key: int, length: int) -> None:
        """Behind its first `length` tokens the context is another one now."""
        if text := self._texts.get(key):
            text.read = min(text.read, length)

    def forget(self, key: int) -> None:
        self._texts.pop(key, None)
