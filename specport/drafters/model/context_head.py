"""Extend a cut head by the tokens of the context.

A head that is cut to frequent tokens (FR-Spec, arXiv 2502.14856) cannot propose names and rare words, which a
text about them repeats. Their head rows are fetched as the tokens occur, and their logits are appended to
those of the head: a few hundred products in addition to tens of thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from array_api_compat import array_namespace, device

from specport.core.ports import Array, Model, StepOutput
from specport.drafters.model.head import DraftHead

MOST = 1024  # maximum extra tokens of one text; the first to occur are kept


@dataclass
class _Text:
    """Hold the extra tokens of one text.

    head: the model's head with the extra columns.
    read: length of the context that was searched.
    ids:  tokens that the head lacks, in order of occurrence.
    rows: [ids, width] their head rows; None = no tokens.
    """

    head: DraftHead
    read: int = 0
    ids: dict[int, None] = field(default_factory=dict)
    rows: Array | None = None


class ContextHead:
    """Hold one head per text: the model's head, extended by the tokens of the context.

    A text's head depends on that text only, so that seeded text is repeatable. Where the model has no
    `head_rows`, every text has the model's head.
    """

    def __init__(self, model: Model, head: DraftHead) -> None:
        self._head_rows = model.head_rows
        self._head = head
        self._texts: dict[int, _Text] = {}

    def follow(self, key: int, context: Sequence[int]) -> None:
        """Add columns for the new tokens of the context."""
        if self._head_rows is None:
            return
        text = self._texts.get(key)
        if text is None or len(context) < text.read:
            text = self._texts[key] = _Text(self._head)
        new = dict.fromkeys(t for t in context[text.read :] if t not in text.ids and self._head.lacks(t))
        text.read = len(context)
        ids = [*new][: MOST - len(text.ids)]
        if ids:
            rows = self._head_rows(ids)
            text.rows = rows if text.rows is None else array_namespace(rows).concat([text.rows, rows])
            text.ids |= dict.fromkeys(ids)
            text.head = self._head.with_ids([*text.ids])

    def head(self, key: int) -> DraftHead:
        """Return the head that maps the columns of this text's logits."""
        text = self._texts.get(key)
        return self._head if text is None else text.head

    def logits(self, key: int, output: StepOutput, nodes: Sequence[int]) -> list[Array]:
        """Return the logits [columns] at these rows of a step's output, which belong to one text."""
        text = self._texts.get(key)
        if text is None or text.rows is None:
            return [output.logits[node, :] for node in nodes]
        assert output.head_input is not None  # the model has `head_rows`
        xp, where = array_namespace(output.logits), device(output.logits)
        picked = xp.asarray([*nodes], device=where)
        own, read = (xp.take(array, picked, axis=0) for array in (output.logits, output.head_input))
        more = xp.matmul(xp.astype(read, text.rows.dtype), xp.asarray(text.rows, device=where).T)
        whole = xp.concat([own, xp.astype(more, own.dtype)], axis=1)
        return [whole[i, :] for i in range(len(nodes))]

    def rewind(self, key: int, length: int) -> None:
        """Search the context again from position `length` on, where it has changed."""
        if text := self._texts.get(key):
            text.read = min(text.read, length)

    def forget(self, key: int) -> None:
        self._texts.pop(key, None)
