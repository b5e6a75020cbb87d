"""Write files and folders atomically: write beside the target, then rename."""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_WINDOWS = os.name == "nt"
_RANDOM = "[0-9a-f]" * 8  # in the names of temporary files
_STALE_S = 3600.0
_TRIES, _WAIT_S = 5, 0.05  # Windows refuses a rename while another program has the file open


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` when the block succeeds.

    Creates the folder if needed. When the block fails, `path` stays as it was. What killed processes left is
    removed. Raises OSError.

    lasting: False for one of many files of a cache, which may be lost: it need not be on the disk before it
             is renamed, and nobody looks for what killed processes left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if lasting:
        _remove_stale(path, "tmp")
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        if lasting:
            _on_disk(temporary)
        move(temporary, path)
    except BaseException:  # Ctrl-C too
        with suppress(OSError):  # Windows deletes no open file; what stays is removed later
            temporary.unlink(missing_ok=True)
        raise


def owner_only(path: str, flags: int) -> int:
    """Open a file for `open(opener=...)`; a new one may be read by its owner only, where modes mean that."""
    return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)


def new_folder(parent: Path, name: str) -> Path:
    """Make an empty folder `name.RANDOM`. The umask says who may read it; only its owner ever writes there.

    `tempfile.mkdtemp` makes folders that nobody else can read, whatever the umask. Raises OSError.
    """
    folder = parent / f"{name}.{secrets.token_hex(4)}"
    folder.mkdir(mode=0o755)
    return folder


def remove_stale_folders(parent: Path, name: str) -> None:
    """Remove folders `name.RANDOM` that killed processes left; for those that are written within minutes."""
    for left in parent.glob(f"{glob.escape(name)}.{_RANDOM}"):
        with suppress(OSError):  # another process removes it, too
            if left.is_dir() and left.stat().st_mtime < time.time() - _STALE_S:
                shutil.rmtree(left, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text without newline conversion. Raises OSError; an older file then stays as it was."""
    with replacing(path) as temporary, open(temporary, "x", encoding="utf-8", newline="") as file:
        file.write(text)


def write_json(path: Path, value: Any, *, indent: int | None = 1, sort_keys: bool = False) -> None:
    """Write a value as JSON, atomically. Raises OSError, and TypeError for a value that JSON cannot hold."""
    write_atomically(path, json.dumps(value, indent=indent, sort_keys=sort_keys) + "\n")


def replace_folder(new: Path, out: Path) -> None:
    """Move the folder `new` to `out` on the same file system, replacing a folder there.

    The old folder is moved aside, and deleted only after the new one is in place; on failure it is moved
    back. No system renames a folder over a non-empty one, so for an instant neither exists: `recovered` finds
    the old one. Raises OSError.
    """
    recovered(out)
    if not os.path.lexists(out):
        move(new, out)
        return
    old = _beside(out, "old")
    move(out, old)
    try:
        move(new, out)
    except BaseException:
        if os.path.lexists(old):  # else another process has put it back meanwhile (`recovered`)
            move(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recovered(out: Path) -> Path:
    """Return `out`; an older folder is put back there where a process was killed between the two moves."""
    for old in sorted(out.parent.glob(f".{glob.escape(out.name[:100])}.{_RANDOM}.old")):
        if os.path.lexists(out):
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):  # a read-only folder, or another process was first
                move(old, out)
    return out


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.{kind}")


def _remove_stale(path: Path, kind: str) -> None:
    """Remove files that other processes began long ago to write for `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name[:100])}.{_RANDOM}.{kind}"):
        with suppress(OSError):  # another process removes it, too
            if left.stat().st_mtime < time.time() - _STALE_S:
                left.unlink()


def _on_disk(path: Path) -> None:
    """Wait until a file is on the disk: else a power failure may leave an empty one under its new name."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def move(source: Path, target: Path) -> None:
    """Rename on the same file system; on Windows try again while another program has a file open.

    Raises OSError.
    """
    for left in reversed(range(_TRIES)):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not _WINDOWS or not left:
                raise
            time.sleep(_WAIT_S)
