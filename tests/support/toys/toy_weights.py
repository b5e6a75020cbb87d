"""New weights for a toy model (`WeightUpdates`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specport.errors import InvalidInput
from support.toys.toy_model import ToyModel


class Tables:
    """Replace a toy model's table of logits, its only weight. num_open: open sequences at each update."""

    def __init__(self, model: ToyModel) -> None:
        self._model = model
        self.num_open: list[int] = []

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"table": self._model.table.shape}

    def check(self, weights: Mapping[str, Any]) -> None:
        if {*weights} != {"table"}:
            raise InvalidInput("a toy has one weight, its table")

    def replace(self, weights: Mapping[str, Any]) -> None:
        self.num_open.append(self._model.num_open)
        self._model.table = weights["table"]
