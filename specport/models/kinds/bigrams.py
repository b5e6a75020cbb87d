"""By how much a parallel draft's tokens are likelier behind the token before: pairs of its training text.

The file is one .npy array of `PAIR`. It may come from anywhere, and is checked when it is read.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specport.errors import ModelError
from specport.models.kinds.parallel import Parallel
from specport.models.os_errors import cause
from specport.models.safe_files import UnsafeFile, regular

FILE = "bigrams.npy"  # no name of weights, which other runtimes look for
PAIR = np.dtype([("before", "<i4"), ("token", "<i4"), ("gain", "<f4")])
_MOST_NATS = 64.0  # more than any logit differs from another


@dataclass(frozen=True)
class Bigrams:
    """Hold what is added to the logits of tokens behind others.

    pairs: [pairs] of `PAIR`, ascending by `before`, then by `token`: two ids that stood side by side, and the
           nats by which the second one's logit rises behind the first one.

    Raises ValueError for anything else.
    """

    pairs: NDArray[np.void]

    def __post_init__(self) -> None:
        pairs = self.pairs
        if pairs.dtype != PAIR or pairs.ndim != 1:
            raise ValueError("it holds no pairs of tokens")
        before, token, gain = (pairs[name] for name in ("before", "token", "gain"))
        if pairs.size and (min(before.min(), token.min()) < 0 or not (np.abs(gain) <= _MOST_NATS).all()):
            raise ValueError("it has values out of range")
        steps = np.diff(before.astype(np.int64))
        if not ((steps > 0) | ((steps == 0) & (np.diff(token.astype(np.int64)) > 0))).all():
            raise ValueError("its pairs are out of order")

    @cached_property
    def _befores(self) -> NDArray[np.int32]:
        """Return `before` by itself: a search in the pairs would copy it each time."""
        return np.ascontiguousarray(self.pairs["before"])

    def behind(self, token: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the ids that were seen behind this one, and their gains."""
        first, end = np.searchsorted(self._befores, [token, token + 1])
        found = self.pairs[first:end]
        return found["token"], found["gain"]


def write(folder: Path, bigrams: Bigrams) -> None:
    np.save(folder / FILE, bigrams.pairs)


def copy(source: Path, folder: Path) -> None:
    """Copy the file of one folder into another, where there is one."""
    if (source / FILE).is_file():
        shutil.copyfile(source / FILE, folder / FILE)


def of(parallel: Parallel | None, folder: Path) -> Bigrams | None:
    """Return the pairs of a draft's folder; None where its manifest names none. Raises ModelError."""
    return read(folder) if parallel is not None and parallel.bigrams else None


def read(folder: Path) -> Bigrams:
    """Return the pairs of a bundle's folder. Raises ModelError where the file is missing or damaged."""
    path, hint = folder / FILE, "build the draft again with: specport quantize"
    try:
        return Bigrams(np.load(regular(path), allow_pickle=False))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {cause(error)[0]}", hint) from error
    except (UnsafeFile, ValueError, EOFError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ModelError(f"{path} is damaged: {error}", hint) from error
