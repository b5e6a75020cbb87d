"""Read a target's embedding table and rows of its language-model head, decompressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops
from specport.backends.openvino.graph import surgery
from specport.quantize.convert.openvino_core import core

from specport.errors import ModelError

_PIECE = 4096  # rows at a time


def read_tables(
    folder: Path, columns: Sequence[int] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the embeddings [vocab, width] and the head's rows [columns, width] of the IR in `folder`.

    columns: ids; None = all. Raises ModelError where the graph has another form.
    """
    model = surgery.read_model(folder)
    rows = surgery.head_rows(model)
    if rows is None:
        raise ModelError(
            "something comes between the head of this model and its logits", "build a draft model for it"
        )
    ids = ops.parameter([-1], np.int64, name="ids")
    embedded = ops.convert(surgery.embedded(model, ids.output(0)), np.float32)
    head_of, embedding_of = _looker(rows), _looker(ov.Model([embedded], [ids], "embedded"))
    vocab = surgery.num_rows(model)
    kept = np.arange(vocab) if columns is None else np.asarray(columns)
    return embedding_of(np.arange(vocab)), head_of(kept)


def _looker(graph: ov.Model) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    request = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()

    def look_up(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(ids), _PIECE):
            request.infer([ids[start : start + _PIECE]])
            found.append(request.get_output_tensor().data.copy())
        return np.concatenate(found)

    return look_up
