"""Dialogues: texts with the target's answers and its likeliest tokens, and their files."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.errors import ModelError
from specport.models.atomic import owner_only, replacing
from specport.models.os_errors import cause
from specport.models.safe_files import regular

# Within _NEAR nats of the likeliest token there mostly are the wanted number of tokens, and at most _MANY.
_NEAR, _MANY = 8.0, 4096
_MOST_TOKENS = 1 << 24  # larger than any vocabulary
_LEAST_BOUND, _MOST_RATIO = 64 << 20, 64  # bytes that a shard may unpack to, and for each byte of its file
# What zipfile and numpy raise for damaged files; MemoryError for a shape that no memory holds.
_DAMAGE = (
    ValueError, KeyError, TypeError, IndexError, ArithmeticError, RuntimeError, EOFError, MemoryError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip

TopTokens = tuple[NDArray[np.int32], NDArray[np.float32]]  # ids and their probabilities, likeliest first


@dataclass(frozen=True)
class Dialogue:
    """A prompt with the target's answer.

    tokens: ids of the prompt and the answer, which begins at `start`.
    top_ids, top_probs: [answer, k] the target's likeliest ids at each token of the answer, and their
             probabilities, likeliest first.
    weights: [answer] of each token in training; None = all equal.
    hidden:  [answer, size] the target's hidden states at the token before each token of the answer, of all
             chosen layers side by side; None where they were not computed. Not stored with the dialogue.
             Where a draft reads prompts too, [tokens - 1, size]: those before each token but the first.
    """

    tokens: NDArray[np.int32]
    start: int
    top_ids: NDArray[np.int32]
    top_probs: NDArray[np.float32]
    _: KW_ONLY
    weights: NDArray[np.float32] | None = None
    hidden: NDArray[np.float16] | None = None


def likeliest(logits: NDArray[np.float32], count: int) -> TopTokens:
    """Return the `count` likeliest ids of [vocab] logits and their probabilities, likeliest first."""
    count = min(count, logits.size)
    best = logits.max()
    ids = np.flatnonzero(logits > best - _NEAR)  # spares sorting most of a large vocabulary
    if not count <= ids.size <= _MANY:
        ids = np.argpartition(logits, -count)[-count:]
    ids = ids[np.lexsort((ids, -logits[ids]))][:count]  # of equal logits the first id, as argmax does
    shifted = np.exp(logits - best, dtype=np.float32)
    return ids.astype(np.int32), (shifted[ids] / shifted.sum(dtype=np.float64)).astype(np.float32)


def save_shard(path: Path, shard: Sequence[Dialogue], *, lasting: bool = True) -> None:
    """Write a shard atomically, for its owner only. lasting: as for `replacing`.

    Raises ModelError when the file cannot be written.
    """
    try:
        # Another build may write the same shard at the same time.
        with (
            replacing(path, lasting=lasting) as temporary,
            open(temporary, "wb", opener=owner_only) as f,
        ):
            np.savez_compressed(f, **_arrays(shard))
    except OSError as error:
        message, hint = cause(error, "free some space and run the command again: complete shards are kept")
        raise ModelError(f"cannot write {path}: {message}", hint) from error


def _arrays(shard: Sequence[Dialogue]) -> dict[str, Any]:
    if not shard:  # all its turns were too long
        return {"lengths": np.zeros(0, dtype=np.int64)}
    arrays = {
        "tokens": np.concatenate([d.tokens for d in shard]),
        "lengths": np.array([len(d.tokens) for d in shard]),
        "starts": np.array([d.start for d in shard]),
        "top_ids": np.concatenate([d.top_ids for d in shard]),
        "top_probs": np.concatenate([d.top_probs for d in shard]).astype(np.float16),
    }
    if any(d.weights is not None for d in shard):
        arrays["weights"] = np.concatenate([weights_of(d) for d in shard]).astype(np.float16)
    return arrays


def weights_of(dialogue: Dialogue) -> NDArray[np.float32]:
    """Return [answer] the weights of a dialogue's tokens."""
    if dialogue.weights is not None:
        return dialogue.weights
    return np.ones(len(dialogue.tokens) - dialogue.start, dtype=np.float32)


def read_shard(path: Path) -> list[Dialogue]:
    """Return the dialogues of a shard. Raises ModelError when the file is damaged or cannot be read."""
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())  # zipfile reads no more than this
            if size > _LEAST_BOUND + _MOST_RATIO * path.stat().st_size:
                raise ValueError(f"it unpacks to {size:,} bytes")
        with np.load(path, allow_pickle=False) as stored:
            return _dialogues({name: stored[name] for name in stored.files})
    except OSError as error:
        message, hint = cause(error)
        raise ModelError(f"cannot read {path}: {message}", hint) from error
    except _DAMAGE as error:
        raise ModelError(f"{path} is damaged: {error}", "remove it and run the command again") from error


def _dialogues(stored: dict[str, NDArray[Any]]) -> list[Dialogue]:
    """Return the dialogues of a shard's arrays. Raises ValueError or KeyError where they do not fit."""
    lengths = stored["lengths"]
    if not lengths.size:
        return []
    for name, dimensions in {"lengths": 1, "starts": 1, "tokens": 1, "top_ids": 2}.items():
        if stored[name].ndim != dimensions or stored[name].dtype.kind not in "iu":
            raise ValueError(f"its {name} are no whole numbers")
    if lengths.max() > len(stored["tokens"]) or stored["starts"].shape != lengths.shape:
        raise ValueError("its arrays have inconsistent lengths")
    tokens, starts = stored["tokens"], stored["starts"]
    ids, probs = stored["top_ids"], stored["top_probs"].astype(np.float32)
    num_answers = int((lengths - starts).sum())
    if not ((probs >= 0) & (probs <= 1)).all():
        raise ValueError("it has numbers that are no probabilities")
    if len(tokens) != int(lengths.sum()) or not len(ids) == len(probs) == num_answers:
        raise ValueError("its arrays have inconsistent lengths")
    if not ((starts > 0) & (starts <= lengths)).all() or ids.shape != probs.shape:
        raise ValueError("its arrays have inconsistent shapes")
    if any(array.size and not 0 <= array.min() <= array.max() < _MOST_TOKENS for array in (tokens, ids)):
        raise ValueError("it has numbers that are no token ids")
    answers = np.cumsum(lengths - starts)[:-1]
    weights: list[NDArray[np.float32] | None] = [None] * len(lengths)
    if "weights" in stored:
        if len(stored["weights"]) != num_answers:
            raise ValueError("its arrays have inconsistent lengths")
        weights = [*np.split(stored["weights"].astype(np.float32), answers)]
    pieces = zip(
        np.split(tokens, np.cumsum(lengths)[:-1]), starts, np.split(ids, answers), np.split(probs, answers),
        weights, strict=True,
    )  # fmt: skip
    return [Dialogue(text, int(start), top, shares, weights=w) for text, start, top, shares, w in pieces]


def read_shards(paths: Sequence[str | Path]) -> list[Dialogue]:
    """Return the dialogues of several shards, in their order. Raises ModelError."""
    return [dialogue for path in paths for dialogue in read_shard(Path(path))]
