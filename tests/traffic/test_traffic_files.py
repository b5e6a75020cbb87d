"""Files of dialogues: what is written is read back, and damage is noticed."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specport.errors import ModelError
from specport.traffic.dialogues import Dialogue, read_shard, save_shard, weights_of


def dialogue(length: int = 9, start: int = 4, seed: int = 0) -> Dialogue:
    rng = np.random.default_rng(seed)
    answer = length - start
    probs = np.sort(rng.random((answer, 3)).astype(np.float16), axis=1)[:, ::-1].astype(np.float32)
    ids = rng.integers(50, size=(answer, 3)).astype(np.int32)
    return Dialogue(rng.integers(50, size=length).astype(np.int32), start, ids, probs)


def same(a: Dialogue, b: Dialogue) -> bool:
    arrays = zip((a.tokens, a.top_ids, a.top_probs), (b.tokens, b.top_ids, b.top_probs), strict=True)
    return a.start == b.start and all(np.array_equal(x, y) for x, y in arrays)


def test_dialogues_come_back_with_their_weights(tmp_path: Path) -> None:
    plain = [dialogue(), dialogue(12, 5, 1)]
    save_shard(tmp_path / "plain.npz", plain)
    found = read_shard(tmp_path / "plain.npz")
    assert all(map(same, found, plain)) and all(d.weights is None for d in found)
    weighted = [replace(plain[0], weights=np.float32([1, 2, 2, 1, 1])), plain[1]]
    save_shard(tmp_path / "weighted.npz", weighted, lasting=False)
    if os.name == "posix":
        assert [path.stat().st_mode & 0o077 for path in tmp_path.iterdir()] == [0, 0]
    found = read_shard(tmp_path / "weighted.npz")
    assert all(map(same, found, weighted))
    assert [weights_of(d).tolist() for d in found] == [[1, 2, 2, 1, 1], [1] * 7]


@pytest.mark.parametrize("place", [0.15, 0.3, 0.6, 0.99])
def test_a_damaged_file_is_named(tmp_path: Path, place: float) -> None:
    path = tmp_path / "log.npz"
    save_shard(path, [dialogue(seed=i) for i in range(20)])
    content = bytearray(path.read_bytes())
    for i in range(8):
        content[int(place * (len(content) - 8)) + i] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"log\.npz"):
        read_shard(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"log\.npz"):
        read_shard(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"starts": np.array([99, 5])}, {"starts": np.array([0, 5])}, {"lengths": np.array([9, 13])},
        {"tokens": np.full(21, -1)}, {"top_ids": np.full((12, 3), 1 << 30)}, {"top_probs": np.ones((12, 2))},
        {"weights": np.ones(3)}, {"lengths": np.array(["a", "b"])},
    ],
    ids=lambda wrong: str([*wrong]),
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, wrong: dict[str, np.ndarray]) -> None:
    path = tmp_path / "log.npz"
    save_shard(path, [dialogue(), dialogue(12, 5, 1)])
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(path, **{**arrays, **wrong})
    with pytest.raises(ModelError, match="is damaged"):
        read_shard(path)


def test_a_small_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "log.npz"
    np.savez_compressed(path, lengths=np.zeros(1 << 24, np.int64))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelError, match="unpacks to 134,217"):
        read_shard(path)
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1152921504606846975,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lengths.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ModelError, match="is damaged"):
        read_shard(path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log.npz"
    np.savez(path, lengths=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ModelError, match="is damaged"):
        read_shard(path)
