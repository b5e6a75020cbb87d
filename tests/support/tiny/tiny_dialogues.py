"""What a tiny model would write, with its probabilities: text to train on without a target."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from specport.quantize.text.dialogues import Dialogue

from support.tiny import tiny_models

VOCAB = len(tiny_models.vocabulary())


def dialogues(model: Any, count: int, seed: int) -> list[Dialogue]:
    """What a model would write, with its whole distribution."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ids = rng.integers(3, VOCAB, rng.integers(6, 12)).tolist()
        with torch.no_grad():
            probs = torch.softmax(model(torch.tensor([ids])).logits[0], dim=-1).numpy()
        answer = probs[3:-1].argmax(axis=1)
        order = np.argsort(-probs[3:-1], axis=1)[:, :16]
        tokens = np.asarray(ids, dtype=np.int32)
        tokens[4:] = answer  # not what follows from itself; the student only has to learn the map
        top = np.take_along_axis(probs[3:-1], order, axis=1)
        found.append(Dialogue(tokens, 4, order.astype(np.int32), top))
    return found
