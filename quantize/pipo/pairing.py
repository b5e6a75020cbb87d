"""Texts as pairs: which tokens stand together, where PAD stands, and what follows each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Paired:
    """Hold one text in pairs.

    tokens: [n] the text. start: tokens of its prompt.
    first, second: [pairs] ids; PAD is the size of the vocabulary.
    ends:   [pairs] tokens of the text up to the end of each pair.
    """

    tokens: Ints
    start: int
    first: Ints
    second: Ints
    ends: Ints


def in_pairs(tokens: Any, start: int, split: NDArray[np.bool_], no_second: int) -> Paired:
    """Return a text in pairs; prompt and answer each begin a pair, and an odd last token stands with PAD.

    split: for each whole pair of the answer, whether its tokens stand apart, each with PAD.
    """
    text = np.asarray(tokens, np.int64)
    widths = [2] * (start // 2) + [1] * (start % 2)
    count = len(text) - start
    for i in range(count // 2):
        widths += [1, 1] if split[i] else [2]
    widths += [1] * (count % 2)
    ends = np.cumsum(np.asarray(widths, np.int64))
    begins = ends - widths
    whole = np.asarray(widths) == 2
    second = np.where(whole, text[np.minimum(begins + 1, len(text) - 1)], no_second)
    return Paired(text, start, text[begins], second, ends)


def batch(texts: Sequence[Paired], device: Any) -> dict[str, Tensor]:
    """Return the tensors of a batch, padded on the right.

    first, second, nexts: [texts, pairs] ids; `nexts` is the token behind each pair, 0 behind the text.
    rows, columns: [places] pairs behind which a token of an answer stands; answer: [places] that token.
    then: [m] those places that another token follows; answer_then: [m] it.
    """
    longest = max(len(text.first) for text in texts)
    shape = (len(texts), longest)
    first, second, nexts = (np.zeros(shape, np.int64) for _ in range(3))
    rows, columns, answer, then, answer_then = (list[int]() for _ in range(5))
    for i, text in enumerate(texts):
        n, total = len(text.first), len(text.tokens)
        first[i, :n], second[i, :n] = text.first, text.second
        behind = text.ends < total
        nexts[i, :n] = np.where(behind, text.tokens[np.minimum(text.ends, total - 1)], 0)
        for place in np.flatnonzero(behind & (text.ends >= text.start)):
            end = int(text.ends[place])
            if end + 1 < total:
                then.append(len(rows))
                answer_then.append(int(text.tokens[end + 1]))
            rows.append(i)
            columns.append(int(place))
            answer.append(int(text.tokens[end]))
    arrays: dict[str, Any] = {
        "first": first, "second": second, "nexts": nexts, "rows": rows, "columns": columns,
        "answer": answer, "then": then, "answer_then": answer_then,
    }  # fmt: skip
    return {name: torch.as_tensor(np.asarray(a, np.int64), device=device) for name, a in arrays.items()}


def texts_of(batched: dict[str, Tensor]) -> list[tuple[Ints, int]]:
    """Return the texts of a batch of `train.batches`, and the length of each prompt."""
    ids, lengths = batched["ids"].cpu().numpy(), batched["mask"].sum(dim=1).tolist()
    rows, columns = batched["rows"].cpu().numpy(), batched["columns"].cpu().numpy()
    found = []
    for row, length in enumerate(lengths):
        start = int(columns[rows == row].min()) + 1
        found.append((ids[row, :length], start))
    return found
