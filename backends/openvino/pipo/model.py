"""A paged model whose ids are pairs of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from specport.backends.openvino.paged.model import PagedModel
from specport.backends.openvino.pipo.graph import SECONDS
from specport.backends.openvino.request import Array, Request

from specport.models.kinds.pipo import Pairs


class PagedPairs(PagedModel):
    """A compiled graph of `pipo/graph.py` with its cache. Other arguments as for `PagedModel`."""

    def __init__(self, request: Request, *, pairs: Pairs, **options: Any) -> None:
        super().__init__(request, **options)
        self._stride = pairs.stride

    def _infer(self, inputs: Mapping[str, Array]) -> float:
        first, second = np.divmod(np.asarray(inputs["input_ids"], np.int64), self._stride)
        return super()._infer({**inputs, "input_ids": first, SECONDS: second})
