"""Resumable working directory of one build, guarded by a lock file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from specport.errors import InvalidInput, ModelError
from specport.models.atomic import write_atomically
from specport.models.os_errors import cause

REQUEST, LOCK = "request.json", "lock"


@contextmanager
def workplace(work: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Hold the working directory; empty it where another request made it, remove it at a good end.

    Raises InvalidInput where the folder is somebody else's, and ModelError where a file cannot be read or
    written, or the memory does not suffice.
    """
    text = json.dumps(identity, sort_keys=True)
    path = work / REQUEST
    try:
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()) and not (path.is_file() or (work / LOCK).is_file()):
            raise InvalidInput(f"{work} is there already, and no build made it", "choose another --out")
        with _held(work):
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                _empty(work)
                write_atomically(path, text)
            yield
            _remove(work)
        if os.name == "nt":
            # Windows deletes no open file: the lock file is left until here, and stays where another
            # process has it open by now.
            with suppress(OSError):
                (work / LOCK).unlink()
                work.rmdir()
    except OSError as error:
        message, hint = cause(error, "free some space and run the same command: it goes on where it was")
        raise ModelError(f"the build in {work} stopped: {message}", hint) from error
    except MemoryError as error:
        raise ModelError(
            "there is not enough memory to build this draft", "close other programs, or take a smaller --from"
        ) from error


def _empty(work: Path) -> None:
    """Delete all but the lock file."""
    for old in work.iterdir():
        if old.name != LOCK:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()


def _remove(work: Path) -> None:
    """Delete the directory while it is locked: another build must not lose what it writes there.

    The result is in its place by now, so that no failure matters: the next build here empties it.
    """
    with suppress(OSError):
        _empty(work)
        (work / LOCK).unlink()
        work.rmdir()


@contextmanager
def _held(work: Path) -> Iterator[None]:
    taken = InvalidInput(f"another process is building in {work}", "wait for it, or choose another --out")
    lock = FileLock(str(work / LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise taken from None
    try:
        if not (work / LOCK).is_file():  # its last holder has just removed the directory
            raise taken
        yield
    finally:
        lock.release()
