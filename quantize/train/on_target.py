"""What students have in common that read a target's embeddings and its language-model head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class OnTarget(torch.nn.Module):  # type: ignore[misc]
    """Hold the embeddings and the cut head of a target, which are not trained and in no checkpoint.

    table:  [vocab, width] embeddings. head: [columns, width] rows of the head at the ids `columns`.
    column: [vocab] the column of each id; -1 = none.
    """

    def __init__(
        self, table: NDArray[np.floating[Any]], head: NDArray[np.floating[Any]], columns: Sequence[int]
    ) -> None:
        super().__init__()
        self.register_buffer("table", torch.from_numpy(table), persistent=False)
        self.register_buffer("head", torch.from_numpy(head), persistent=False)
        column = torch.full((len(table),), -1)
        column[torch.as_tensor([*columns])] = torch.arange(len(head))
        self.register_buffer("column", column, persistent=False)
