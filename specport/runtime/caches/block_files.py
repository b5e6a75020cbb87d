"""Blocks of prefix caches on disk: one file a block, shared by processes, readable by their owner alone.

A file is a .npy vector of bytes: four of CRC-32, then the block. It appears under its name by a rename, when
it is complete, and its content follows from its name, so processes do not disturb each other. The time of a
file's last use is its modification time; the least recently used files go first. A thread of their own
writes them, since a text need not wait for that.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from specport.errors import InvalidInput
from specport.models.atomic import replacing

_SUFFIX = ".npy"
_MOST_WAITING = 256 << 20  # bytes that wait to be written; more are not stored
_PART = 16  # the folder is measured again when this part of its limit was written
_FULL = 0.9  # of the limit, after old files were removed
_STALE_S = 3600.0  # age at which the unfinished file of a killed process is removed


class BlockFolder:
    """Own a folder of blocks of any number of models, with a limit for all of them together.

    Processes that write at the same time may exceed the limit by a sixteenth each for a moment.

    Raises InvalidInput where the folder cannot be used.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self.root, self.most_bytes = root, most_bytes
        self._writer = ThreadPoolExecutor(1, "prefix-cache")
        self._last: Future[None] | None = None
        self._measured: int | None = None  # bytes in the folder when it was measured last; None = never was
        self._written = 0  # bytes since then
        self.num_waiting = 0  # bytes
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(root, error.strerror or str(error)) from error

    def of(self, key: str) -> BlockFiles:
        """Return the store of one model.

        key: names everything that decides what a block holds. Raises InvalidInput.
        """
        folder = self.root / hashlib.sha256(key.encode()).hexdigest()[:24]
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            # Who may write here decides what models read of their texts.
            if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
                raise _unusable(folder, "it belongs to another user")
            folder.chmod(0o700)
            with replacing(folder / "probe") as probe:
                _write(probe, np.zeros(0, np.uint8))
            (folder / "probe").unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(folder, error.strerror or str(error)) from error
        return BlockFiles(self, folder)

    def submit(self, work: Callable[[], int], nbytes: int) -> bool:
        """Do this later, which writes so many bytes at most; return False where too much waits already."""
        if self.num_waiting + nbytes > _MOST_WAITING or nbytes > self.most_bytes:
            return False
        self.num_waiting += nbytes
        self._last = self._writer.submit(self._write, work, nbytes)
        return True

    def flush(self) -> None:
        """Wait until all is written."""
        if self._last is not None:
            self._last.result()

    def _write(self, work: Callable[[], int], nbytes: int) -> None:
        """Write, then remove old files where the limit may be exceeded. A full disk is no error."""
        try:
            with suppress(OSError):
                self._written += work()
                known = self._measured
                # Other processes write too.
                if known is None or self._written > min(self.most_bytes - known, self.most_bytes // _PART):
                    self._shrink()
        finally:
            self.num_waiting -= nbytes

    def _shrink(self) -> None:
        """Remove the least recently used files while all together exceed the limit."""
        try:
            with FileLock(str(self.root / ".lock")).acquire(timeout=0):
                files = []
                for path in self.root.glob("*/*"):
                    with suppress(OSError):  # another process may remove it
                        stat = path.stat()
                        if path.suffix == _SUFFIX:
                            files.append((stat.st_mtime_ns, stat.st_size, path))
                        elif path.suffix == ".tmp" and time.time() - stat.st_mtime > _STALE_S:
                            path.unlink()
                total = sum(size for _, size, _ in files)
                goal = self.most_bytes if total <= self.most_bytes else int(_FULL * self.most_bytes)
                for _, size, path in sorted(files):
                    if total <= goal:
                        break
                    with suppress(OSError):  # Windows keeps a file that another process has open
                        path.unlink()
                        total -= size
                self._measured, self._written = total, 0
        except Timeout:  # another process does it
            pass


class BlockFiles:
    """Implement `BlockStore` for one model by files in a folder of its own."""

    def __init__(self, shared: BlockFolder, folder: Path) -> None:
        self._shared, self._folder = shared, folder
        self._waiting: set[bytes] = set()

    def has(self, name: bytes) -> bool:
        return name in self._waiting or self._path(name).is_file()

    def get(self, name: bytes) -> NDArray[np.uint8] | None:
        path = self._path(name)
        try:
            stored = np.load(path, allow_pickle=False)
        except OSError:  # mostly, there is none
            return None
        except (ValueError, EOFError, ArithmeticError, RecursionError, MemoryError):  # cut off, or no .npy
            self.discard(name)
            return None
        if stored.dtype != np.uint8 or stored.ndim != 1 or not _is_whole(stored):
            self.discard(name)
            return None
        self.touch(name)
        content: NDArray[np.uint8] = stored[4:]
        return content

    def put(self, name: bytes, content: NDArray[np.uint8]) -> None:
        path = self._path(name)

        def write() -> int:
            try:
                with replacing(path, lasting=False) as temporary:
                    _write(temporary, content)
                return path.stat().st_size
            finally:
                self._waiting.discard(name)

        self._waiting.add(name)
        if not self._shared.submit(write, content.nbytes):
            self._waiting.discard(name)

    def touch(self, name: bytes) -> None:
        with suppress(OSError):
            os.utime(self._path(name))

    def discard(self, name: bytes) -> None:
        with suppress(OSError):
            self._path(name).unlink()

    def flush(self) -> None:
        self._shared.flush()

    def _path(self, name: bytes) -> Path:
        return self._folder / f"{name.hex()}{_SUFFIX}"


def _write(path: Path, content: NDArray[np.uint8]) -> None:
    crc = np.frombuffer(zlib.crc32(content.data).to_bytes(4, "little"), np.uint8)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        np.save(file, np.concatenate([crc, content]), allow_pickle=False)


def _is_whole(stored: NDArray[np.uint8]) -> bool:
    return len(stored) >= 4 and zlib.crc32(stored[4:].data) == int.from_bytes(stored[:4].tobytes(), "little")


def _unusable(folder: Path, why: str) -> InvalidInput:
    return InvalidInput(f"cannot keep a prefix cache in {folder}: {why}", "choose another --prefix-cache")
