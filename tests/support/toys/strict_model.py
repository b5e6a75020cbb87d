"""The toy model on array_api_strict arrays, which do nothing that the standard does not promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import array_api_strict
import numpy as np

from specport.core.ports import Row, StepOutput
from support.toys.toy_model import ToyModel


class StrictModel(ToyModel):
    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        return replace(output, logits=array_api_strict.asarray(np.asarray(output.logits)))
