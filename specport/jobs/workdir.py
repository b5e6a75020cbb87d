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
from specport.models.atomic import move, write_atomically
from specport.models.os_errors import cause

REQUEST, LOCK = "request.json", "lock"


def check_new(out: Path) -> None:
    """Raise InvalidInput where the output path exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"{out} is there already", "choose another --out, or remove it first")


def path_for(out: Path) -> Path:
    """Return the working directory of a build whose result is written to `out`."""
    return out.with_name(out.name + ".partial")


def publish(folder: Path, out: Path) -> None:
    """Move a finished result to `out`, which is missing or empty (`check_new`)."""
    if out.exists():
        out.rmdir()
    move(folder, out)


@contextmanager
def hold_workdir(work: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Lock a working directory, and remove it when the build in it has succeeded.

    identity: the request; a directory of a different request is emptied first.

    Raises InvalidInput where another process holds the directory or no build made it, and ModelError where a
    file cannot be read or written or memory runs out.
    """
    text = json.dumps(identity, sort_keys=True)
    path = work / REQUEST
    try:
        work.mkdir(0o700, parents=True, exist_ok=True)  # the request and its texts are the user's own
        if any(work.iterdir()) and not (path.is_file() or (work / LOCK).is_file()):
            raise InvalidInput(f"{work} is there already, but no build made it", "choose another --out")
        with _locked(work):
            if not path.is_file() or path.read_bytes() != text.encode():
                _empty(work)
                write_atomically(path, text)
            yield
            _remove(work)
        if os.name == "nt":
            # Windows cannot delete an open file: the lock file is left until here, and stays where another
            # process has opened it meanwhile.
            with suppress(OSError):
                (work / LOCK).unlink()
                work.rmdir()
    except OSError as error:
        message, hint = cause(error, "free some space and run the same command again: it resumes the build")
        raise ModelError(f"the build in {work} stopped: {message}", hint) from error
    except MemoryError as error:
        raise ModelError(
            "there is not enough memory to build this draft", "close other programs, or use a smaller --from"
        ) from error


def _empty(work: Path) -> None:
    """Delete everything but the lock file."""
    for old in work.iterdir():
        if old.name != LOCK:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()


def _remove(work: Path) -> None:
    """Delete the directory while it is locked, so that another build cannot lose what it writes there.

    Errors are ignored: the result is in its place, and the next build here empties the directory.
    """
    with suppress(OSError):
        _empty(work)
        (work / LOCK).unlink()
        work.rmdir()


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    taken = InvalidInput(f"another process is building in {work}", "wait for it, or choose another folder")
    lock = FileLock(str(work / LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise taken from None
    try:
        if not (work / LOCK).is_file():  # its previous holder has just removed the directory
            raise taken
        yield
    finally:
        lock.release()
