"""The toy model with a cut head and steps of a given duration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specport.core.ports import Row, StepOutput
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)
from support.toys.toy_model import ToyCutModel


class CutToy(ToyCutModel):
    """A toy with a cut head, no rows beside it, whose steps take as long as is told."""

    def __init__(self, keep: Sequence[int] | None = None, seconds: float = 0.0, **options: Any) -> None:
        super().__init__(keep, head_rows=False, **options)
        self.seconds, self.now = seconds, 0.0

    def step(self, rows: Sequence[Row]) -> StepOutput:
        self.now += self.seconds
        return super().step(rows)
