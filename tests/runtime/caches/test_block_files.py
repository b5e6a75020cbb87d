"""Blocks of prefix caches on disk: found again, limited in size, safe against damage and other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from specport.errors import InvalidInput
from specport.runtime.caches.block_files import BlockFiles, BlockFolder

NAMES = [bytes([i]) * 32 for i in range(40)]


def content(i: int, size: int = 1000) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, size).astype(np.uint8)


def store(root: Path, most: int = 1 << 20, key: str = "model") -> BlockFiles:
    return BlockFolder(root, most).of(key)


def files(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.npy"))


def test_another_process_s_store_finds_what_was_put(tmp_path: Path) -> None:
    blocks = store(tmp_path / "a" / "b")
    blocks.put(NAMES[0], content(0))
    assert blocks.has(NAMES[0])  # from now on, written or not
    blocks.flush()
    other = store(tmp_path / "a" / "b")
    assert other.has(NAMES[0]) and not other.has(NAMES[1]) and other.get(NAMES[1]) is None
    found = other.get(NAMES[0])
    assert found is not None
    np.testing.assert_array_equal(found, content(0))


def test_models_do_not_see_each_other_s_blocks(tmp_path: Path) -> None:
    blocks = store(tmp_path)
    blocks.put(NAMES[0], content(0))
    blocks.flush()
    assert not store(tmp_path, key="other").has(NAMES[0])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    blocks = store(tmp_path)
    blocks.put(NAMES[0], content(0))
    blocks.flush()
    (path,) = files(tmp_path)
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"no numpy file",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:140] + bytes([data[140] ^ 16]) + data[141:],
    ],
    ids=["half", "empty", "other", "last-bit", "some-bit"],
)
def test_a_damaged_file_is_removed_and_not_used(tmp_path: Path, damage) -> None:
    blocks = store(tmp_path)
    blocks.put(NAMES[0], content(0))
    blocks.flush()
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert blocks.get(NAMES[0]) is None and not files(tmp_path) and not blocks.has(NAMES[0])


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    blocks = store(tmp_path)
    blocks.put(NAMES[0], content(0))
    blocks.flush()
    (path,) = files(tmp_path)
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    assert blocks.get(NAMES[0]) is None and not files(tmp_path)


def test_the_least_recently_used_files_go_when_the_limit_is_exceeded(tmp_path: Path) -> None:
    blocks = store(tmp_path, most=20_000)
    for i in range(15):
        blocks.put(NAMES[i], content(i))
    blocks.flush()
    assert len(files(tmp_path)) == 15
    for age, path in enumerate(files(tmp_path)):
        os.utime(path, (time.time() - 1000 + age, time.time() - 1000 + age))
    blocks.touch(NAMES[0])
    assert blocks.get(NAMES[1]) is not None
    for i in range(15, 25):
        blocks.put(NAMES[i], content(i))
    blocks.flush()
    left = files(tmp_path)
    assert sum(path.stat().st_size for path in left) <= 20_000 and len(left) >= 12
    assert blocks.has(NAMES[0]) and blocks.has(NAMES[1]) and blocks.has(NAMES[24])
    assert not any(blocks.has(name) for name in NAMES[2:8])


def test_the_limit_holds_for_all_models_together(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path, 10_000)
    for key in ("a", "b", "c"):
        blocks = folder.of(key)
        for i in range(6):
            blocks.put(NAMES[i], content(i))
    folder.flush()
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 10_000


def test_a_block_larger_than_the_limit_is_not_stored(tmp_path: Path) -> None:
    blocks = store(tmp_path, most=500)
    blocks.put(NAMES[0], content(0))
    blocks.flush()
    assert not files(tmp_path) and not blocks.has(NAMES[0])


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    blocks = store(tmp_path)
    blocks.put(NAMES[0], content(0))
    blocks.flush()
    folder = files(tmp_path)[0].parent
    old, new = folder / ".a.npy.0.tmp", folder / ".b.npy.1.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    other = store(tmp_path)
    other.put(NAMES[1], content(1))
    other.flush()
    assert not old.exists() and new.exists()


def test_a_full_disk_costs_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = store(tmp_path)

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("specport.runtime.caches.block_files.np.save", full)
    blocks.put(NAMES[0], content(0))
    blocks.flush()
    assert not blocks.has(NAMES[0]) and not files(tmp_path)
    assert not [*tmp_path.glob("*/.*.tmp")]


def test_two_processes_write_and_read_the_same_blocks_at_once(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from specport.runtime.caches.block_files import BlockFolder\n"
        "blocks = BlockFolder(Path(sys.argv[1]), 60_000).of('model')\n"
        "for turn in range(6):\n"
        "    for i in range(40):\n"
        "        name = bytes([i]) * 32\n"
        "        right = np.random.default_rng(i).integers(0, 256, 3000).astype(np.uint8)\n"
        "        found = blocks.get(name)\n"
        "        assert found is None or np.array_equal(found, right)\n"
        "        if found is None: blocks.put(name, right)\n"
        "blocks.flush()\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert files(tmp_path) and not [*tmp_path.glob("*/.*.tmp")]
    # Each process may be over by what it wrote since it measured.
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 60_000 * (1 + 3 / 16) + 3 * 3200


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="cannot keep a prefix cache in"):
        store(tmp_path / "file")
