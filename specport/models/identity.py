"""Fingerprint weights: short, fast identifiers of a model, independent of its path."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

SAMPLES, SAMPLE_BYTES = 64, 1 << 18  # 16 MiB of each weight file, evenly spread


def fingerprint(folder: Path, small: Iterable[str], weights: Iterable[str]) -> str:
    """Return SHA-256 over the whole `small` files and over size and samples of the `weights` files.

    Sampling keeps this at about ten milliseconds for a file of any size. It distinguishes models; it does not
    protect against deliberately forged weights.
    """
    digest = hashlib.sha256()
    for name in sorted(small):
        digest.update(f"{name}\0".encode() + _whole(folder / name))
    for name in sorted(weights):
        _sample(folder / name, digest)
    return digest.hexdigest()


def _whole(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(SAMPLE_BYTES):
            digest.update(data)
    return digest.digest()


def _sample(path: Path, digest: hashlib._Hash) -> None:
    size = path.stat().st_size
    digest.update(b"%d\0" % size)
    with open(path, "rb", buffering=0) as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
            return
        step = (size - SAMPLE_BYTES) / (SAMPLES - 1)
        for i in range(SAMPLES):
            file.seek(round(i * step))
            digest.update(file.read(SAMPLE_BYTES))
