"""Logits and residual streams of a model with some of its layers switched off.

One compiled graph serves every combination: each layer's contribution to the residual stream is multiplied by
an input. Switching a layer off gives bit for bit the result of dropping it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import opset15 as ops
from specport.backends.openvino.graph import layers, surgery
from specport.quantize.convert.openvino_core import core

from specport.calibration.target_text import Text


class Probe:
    """A draft candidate with switchable layers.

    folder:     stateful IR.
    head:       token ids that the draft's head will keep, beside the ids of the text; None = all.
    properties: of the runtime, as a draft is loaded with.
    """

    def __init__(
        self, folder: Path, device: str, properties: Mapping[str, Any], head: Sequence[int] | None = None
    ) -> None:
        model = surgery.read_model(folder)
        model_layers = layers.find(model)
        self.num_layers = len(model_layers)
        streams = [layer.entry for layer in model_layers] + [model_layers[-1].exit]
        self._head = None if head is None else np.asarray(head, dtype=np.int64)
        rows = ops.parameter([-1], np.int32, name="rows")
        rows.output(0).set_names({"rows"})
        model.add_parameters([rows])
        surgery.trim(model, rows, None)
        for number, stream in enumerate(streams):
            kept = ops.gather(stream, rows, ops.constant(np.int64(1))).output(0)
            kept.set_names({f"stream.{number}"})
            model.add_outputs([kept])
        layers.gate(model)
        self._request = core().compile_model(model, device, dict(properties)).create_infer_request()
        self._plain = np.ones(self.num_layers, dtype=np.float32)

    def logits(self, text: Text, dropped: Collection[int] = ()) -> NDArray[np.float32]:
        """Return the logits [answer, vocab] at each token of the answer. Valid until the next call."""
        self._read(text, dropped)
        logits: NDArray[np.float32] = self._request.get_tensor("logits").data[0]
        return logits

    def choices(self, text: Text, dropped: Collection[int] = ()) -> NDArray[np.int64]:
        """Return [answer]: the id that the draft proposes at each token of the answer."""
        logits = self.logits(text, dropped)
        if self._head is None:
            best: NDArray[np.int64] = logits.argmax(axis=1)
            return best
        ids, first = np.unique([*text.prompt, *text.answer[:-1]], return_index=True)
        # A cut head also has the tokens that the text has had so far (`drafters/model/context_head.py`).
        unseen = first >= len(text.prompt) + np.arange(len(logits))[:, None]
        candidates = np.concatenate([self._head, ids])
        columns = np.concatenate([logits[:, self._head], np.where(unseen, -np.inf, logits[:, ids])], axis=1)
        chosen: NDArray[np.int64] = candidates[columns.argmax(axis=1)]
        return chosen

    def agreement(self, texts: Sequence[Text], dropped: Collection[int] = ()) -> float:
        """Return the share of the target's tokens that the draft proposes without the `dropped` layers."""
        right = [self.choices(text, dropped) == np.asarray(text.answer) for text in texts]
        return float(np.concatenate(right).mean())

    def streams(self, text: Text) -> NDArray[np.float32]:
        """Return [layers + 1, answer, width]: the residual stream before each layer and after the last."""
        self._read(text, ())
        rows = [self._request.get_tensor(f"stream.{n}").data[0] for n in range(self.num_layers + 1)]
        return np.stack(rows).astype(np.float32)

    def _read(self, text: Text, dropped: Collection[int]) -> None:
        tokens = np.array([[*text.prompt, *text.answer[:-1]]], dtype=np.int64)
        length = tokens.shape[1]
        gates = self._plain.copy()
        gates[list(dropped)] = 0.0
        self._request.reset_state()
        self._request.infer(
            {
                "input_ids": tokens,
                "attention_mask": np.ones((1, length), dtype=np.int64),
                "position_ids": np.arange(length, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, dtype=np.int32),
                "gates": gates,
                "rows": np.arange(len(text.prompt) - 1, length, dtype=np.int32),
            }
        )
