"""Dialogues: prompts with the target's answers and its likeliest tokens, and their files."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.errors import ModelError
from specport.models.atomic import replacing
from specport.models.os_errors import cause

TOP_K = 32
# Within _NEAR nats of the likeliest token there mostly are TOP_K tokens, and at most _MANY.
_NEAR, _MANY = 8.0, 4096

TopTokens = tuple[NDArray[np.int32], NDArray[np.float32]]  # ids and their probabilities, likeliest first


@dataclass(frozen=True)
class Dialogue:
    """A prompt with the target's answer.

    tokens: ids of the prompt and the answer, which begins at `start`.
    top_ids, top_probs: [answer, TOP_K] the target's likeliest ids at each token of the answer, and their
             probabilities, likeliest first.
    hidden:  [answer, size] the target's hidden states at the token before each token of the answer, of all
             chosen layers side by side; None where they were not computed. Not stored with the dialogue.
    """

    tokens: NDArray[np.int32]
    start: int
    top_ids: NDArray[np.int32]
    top_probs: NDArray[np.float32]
    hidden: NDArray[np.float16] | None = None


def likeliest(logits: NDArray[np.float32]) -> TopTokens:
    """Return the TOP_K likeliest ids of [vocab] logits and their probabilities, likeliest first."""
    count = min(TOP_K, logits.size)
    best = logits.max()
    ids = np.flatnonzero(logits > best - _NEAR)  # spares sorting most of a large vocabulary
    if not count <= ids.size <= _MANY:
        ids = np.argpartition(logits, -count)[-count:]
    ids = ids[np.lexsort((ids, -logits[ids]))][:count]  # of equal logits the first id, as argmax does
    shifted = np.exp(logits - best, dtype=np.float32)
    return ids.astype(np.int32), (shifted[ids] / shifted.sum(dtype=np.float64)).astype(np.float32)


def save_shard(path: Path, shard: Sequence[Dialogue]) -> None:
    """Write a shard atomically. Raises ModelError when the file cannot be written."""
    try:
        # Another build may write the same shard at the same time.
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **_arrays(shard))
    except OSError as error:
        message, hint = cause(error, "free some space and run the command again: complete shards are kept")
        raise ModelError(f"cannot write {path}: {message}", hint) from error


def _arrays(shard: Sequence[Dialogue]) -> dict[str, Any]:
    if not shard:  # all its turns were too long
        return {"lengths": np.zeros(0, dtype=np.int64)}
    return {
        "tokens": np.concatenate([d.tokens for d in shard]),
        "lengths": np.array([len(d.tokens) for d in shard]),
        "starts": np.array([d.start for d in shard]),
        "top_ids": np.concatenate([d.top_ids for d in shard]),
        "top_probs": np.concatenate([d.top_probs for d in shard]).astype(np.float16),
    }


def read_shard(path: Path) -> list[Dialogue]:
    """Return the dialogues of a shard. Raises ModelError when the file is damaged or cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not stored["lengths"].size:
                return []
            ends = np.cumsum(stored["lengths"])
            answers = np.cumsum(stored["lengths"] - stored["starts"])
            pieces = zip(
                np.split(stored["tokens"], ends[:-1]),
                stored["starts"],
                np.split(stored["top_ids"], answers[:-1]),
                np.split(stored["top_probs"].astype(np.float32), answers[:-1]),
                strict=True,
            )
            return [Dialogue(tokens, int(start), ids, probs) for tokens, start, ids, probs in pieces]
    except OSError as error:
        message, hint = cause(error)
        raise ModelError(f"cannot read {path}: {message}", hint) from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is damaged: {error}", "remove it and run the command again") from error


def read_shards(paths: Sequence[str | Path]) -> list[Dialogue]:
    """Return the dialogues of several shards, in their order. Raises ModelError."""
    return [dialogue for path in paths for dialogue in read_shard(Path(path))]


def token_counts(shards: Sequence[Path]) -> Counter[int]:
    """Return how often each token id occurs in these shards, prompts included. Raises ModelError."""
    return Counter(token for path in shards for d in read_shard(path) for token in d.tokens.tolist())
