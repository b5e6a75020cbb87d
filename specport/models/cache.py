"""Cache folder of converted and downloaded models, each a folder with a manifest.

An entry is built in a temporary folder, renamed into place, and checked before use. One lock file per entry
keeps processes from building it twice. The next process that holds the lock removes the files that a killed
process left.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import BaseFileLock, FileLock, Timeout

from specport.errors import InvalidInput, ModelError
from specport.models import manifest
from specport.models.atomic import move, new_folder
from specport.models.os_errors import cause
from specport.outside.places import expanded
from specport.progress import Progress, silent

ENTRY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")


@dataclass(frozen=True)
class Entry:
    """Hold a model in the cache. `about` comes from its builder: name, source, precision, versions."""

    name: str
    folder: Path
    about: Mapping[str, Any]
    size: int  # bytes


def cache_root() -> Path:
    """Return the cache folder: $SPECPORT_CACHE, else the platform's user cache folder."""
    if chosen := os.environ.get("SPECPORT_CACHE"):
        return expanded(chosen)
    found = Path(platformdirs.user_cache_path("specport", False))
    if not found.is_absolute():  # of a user whom the system does not know
        raise ModelError("this user has no home folder for the cache", "set SPECPORT_CACHE to a folder")
    return found


def entry(
    name: str,
    build: Callable[[Path], Mapping[str, Any]],
    progress: Progress = silent,
    also_damaged: Callable[[Path], str | None] = lambda folder: None,
) -> Entry:
    """Return the entry `name`. Build it by `build(empty folder) -> about` where it is missing or damaged.

    `also_damaged` may add a check to that of the manifest. Raises whatever `build` raises, and ModelError
    when the cache cannot be written.
    """
    if not ENTRY_NAME.fullmatch(name):
        raise ValueError(f"not a cache entry name: {name!r}")
    folder = _models() / name
    found = _usable(folder, also_damaged)
    if found is not None:
        return found
    try:
        for place in (_models(), _temporary()):
            place.mkdir(parents=True, exist_ok=True)
        with _wait_for_lock(name, progress):
            found = _usable(folder, also_damaged)  # another process may have built it meanwhile
            return found if found is not None else _build(name, folder, build)
    except OSError as error:
        # `build` also reads: the file that the error names may be outside the cache.
        message, hint = cause(error, "free some space")
        hint += ", or set SPECPORT_CACHE to another folder"
        raise ModelError(f"cannot make {name} in the cache {cache_root()}: {message}", hint) from error


def entries() -> list[Entry]:
    """Return every entry, sorted by name. Damaged ones have an `about` of {"damage": reason}."""
    if not _models().is_dir():
        return []
    return [_listed(path) for path in sorted(_models().iterdir()) if path.is_dir()]


def find(name: str) -> Entry:
    """Return one entry, damaged or not, as in `entries`. Raises InvalidInput when there is none."""
    return _listed(_existing(name))


def verify(name: str) -> str | None:
    """Hash every file of an entry. Return what is wrong with it, or None."""
    return manifest.damage(_existing(name), thorough=True)


def remove(name: str) -> int:
    """Remove an entry and return the bytes freed. Raises InvalidInput when there is no such entry."""
    folder = _existing(name)
    size = _size(folder)
    with _wait_for_lock(name, silent):
        _discard(folder)
    return size


def _existing(name: str) -> Path:
    folder = _models() / name
    if not ENTRY_NAME.fullmatch(name) or not folder.is_dir():
        raise InvalidInput(f"no model {name!r} in the cache", "see `specport models`")
    return folder


def _models() -> Path:
    return cache_root() / "models"


def _temporary() -> Path:
    return cache_root() / "tmp"  # on the same file system, so that a rename is atomic


def _lock(name: str) -> BaseFileLock:
    locks = cache_root() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(str(locks / f"{name}.lock"))


@contextmanager
def _wait_for_lock(name: str, progress: Progress) -> Iterator[None]:
    lock = _lock(name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another process", 0.0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _usable(folder: Path, also_damaged: Callable[[Path], str | None]) -> Entry | None:
    if not folder.is_dir() or manifest.damage(folder) or also_damaged(folder):
        return None
    return _entry(folder, None)


def _listed(folder: Path) -> Entry:
    wrong = manifest.damage(folder)
    return _entry(folder, {"damage": wrong} if wrong else None)


def _entry(folder: Path, about: Mapping[str, Any] | None) -> Entry:
    known = manifest.read(folder)
    return Entry(folder.name, folder, about or (known or {}).get("about", {}), _size(folder))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _build(name: str, folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> Entry:
    """Build under the lock. On any failure, no partial entry remains."""
    _clean(name)
    work = new_folder(_temporary(), name)
    try:
        manifest.write(work, build(work))
        if folder.exists():
            _discard(folder)
        move(work, folder)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(work, ignore_errors=True)
        raise
    return _entry(folder, None)


def _clean(held: str) -> None:
    """Remove the temporary folders of killed processes: those whose lock is free or held by this process."""
    for stale in _temporary().iterdir():
        owner = stale.name.rpartition(".")[0]
        if owner == held:
            shutil.rmtree(stale, ignore_errors=True)
        elif ENTRY_NAME.fullmatch(owner):
            with suppress(Timeout), _lock(owner).acquire(timeout=0):
                shutil.rmtree(stale, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Rename an entry out of the way, then delete it, so that no process sees a partial entry."""
    _temporary().mkdir(parents=True, exist_ok=True)
    grave = new_folder(_temporary(), folder.name)
    try:
        move(folder, grave / "old")
    except OSError as error:
        raise ModelError(
            f"cannot replace {folder}: {error.strerror or error}", "close the program that is using it"
        ) from error
    finally:
        shutil.rmtree(grave, ignore_errors=True)
