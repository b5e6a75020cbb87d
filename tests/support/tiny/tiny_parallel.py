"""Text that a tiny model can learn to draft in parallel: a permutation says which token follows which."""

from __future__ import annotations

import numpy as np
from specport.quantize.text.dialogues import Dialogue

from support.tiny import tiny_models

VOCAB = len(tiny_models.vocabulary())
FIRST, COUNT = 100, 12  # the ids that occur
_IMAGE = np.random.default_rng(3).permutation(COUNT)


def dialogues(count: int, seed: int, lengths: tuple[int, int] = (14, 24)) -> list[Dialogue]:
    """Return texts whose prompt is their first three tokens, with the target's two likeliest tokens."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens = [int(rng.integers(COUNT))]
        while len(tokens) < rng.integers(*lengths):
            tokens.append(int(_IMAGE[tokens[-1]]))
        ids = np.asarray(tokens, dtype=np.int32) + FIRST
        top = np.stack([ids[3:], FIRST + (ids[3:] - FIRST + 1) % COUNT], axis=1)
        probs = np.tile(np.float32([0.9, 0.08]), (len(ids) - 3, 1))
        found.append(Dialogue(ids, 3, top.astype(np.int32), probs))
    return found
