"""The folder of what is half done, and who works in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from specport.errors import InvalidInput, ModelError

REQUEST = "request.json"


@contextmanager
def workplace(work: Path, identity: dict[str, Any]) -> Iterator[None]:
    """The folder of what is half done; another request's is thrown away, a finished one's removed.

    Raises InvalidInput where the folder is somebody else's, and ModelError where there is no room.
    """
    text = json.dumps(identity, sort_keys=True)
    path = work / REQUEST
    try:
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()) and not (path.is_file() or (work / "lock").is_file()):
            raise InvalidInput(f"{work} is there already, and no build made it", "choose another --out")
        with _held(work):
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                for old in work.iterdir():
                    if old.name != "lock":
                        shutil.rmtree(old) if old.is_dir() else old.unlink()
                path.write_text(text, encoding="utf-8")
            yield
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"cannot write to {work}: {error.strerror or error}",
            "free some space and run the same command: it goes on where it was",
        ) from error
    except MemoryError as error:
        raise ModelError(
            "there is not enough memory to build this draft", "close other programs, or take a smaller --from"
        ) from error


@contextmanager
def _held(work: Path) -> Iterator[None]:
    lock = FileLock(str(work / "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InvalidInput(
            f"another process is building in {work}", "wait for it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()
