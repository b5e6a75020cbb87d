"""Exchange of a draft's folder, keeping exactly one previous version in `DRAFT.previous`.

Whoever has loaded the old files keeps them: they are renamed, and deleted only at the exchange after that.
At any interruption one whole version is in one of four folders; `recover` puts it back.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from specport.errors import InvalidInput, ModelError
from specport.models import bundle
from specport.models.atomic import move
from specport.models.cache import cache_root
from specport.models.os_errors import cause

_BUSY = "close the programs that use this draft, and run the same command again"


def previous_of(draft: Path) -> Path:
    """Return the folder of the previous version."""
    return draft.with_name(f"{draft.name}.previous")


def install(new: Path, draft: Path) -> None:
    """Put the bundle in the folder `new` in the place of `draft`, which becomes the previous version.

    new: stays where it is. Raises ModelError; the draft is then as it was.
    """
    staged, copy = _beside(draft, "new"), _beside(draft, "copy")
    with _alone(draft, "replace"):
        _recover(draft)
        try:
            shutil.copytree(new, copy)
            bundle.read(copy)
            move(copy, staged)
            _exchange(staged, draft)
        finally:
            if draft.exists():
                for left in (copy, staged):
                    shutil.rmtree(left, ignore_errors=True)


def undo(draft: Path) -> None:
    """Exchange draft and its previous version. Raises ModelError, and InvalidInput where there is none."""
    previous, back = previous_of(draft), _beside(draft, "back")
    with _alone(draft, "replace"):
        _recover(draft)
        if not previous.is_dir():
            raise InvalidInput(
                f"there is no previous version of {draft}", "specport adapt status shows drafts"
            )
        bundle.read(previous)
        try:
            move(previous, back)
            _exchange(back, draft)
        except OSError:
            _recover(draft)
            raise


def recover(draft: Path) -> None:
    """Complete an exchange that was interrupted, or take it back. Raises ModelError."""
    with _alone(draft, "restore"):
        _recover(draft)


@contextmanager
def _alone(draft: Path, verb: str) -> Iterator[None]:
    """Keep other processes from exchanging the same draft. Raises ModelError for an OSError."""
    name = hashlib.sha256(str(draft).encode()).hexdigest()[:16]
    locks = cache_root() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(str(locks / f"draft-{name}.lock")):
            yield
    except OSError as error:
        message, hint = cause(error)
        busy = isinstance(error, PermissionError)
        raise ModelError(f"cannot {verb} {draft}: {message}", _BUSY if busy else hint) from error


def _recover(draft: Path) -> None:
    staged, back, old, copy = (_beside(draft, name) for name in ("new", "back", "old", "copy"))
    previous = previous_of(draft)
    for found in (staged, back, previous):
        if not draft.exists() and found.is_dir():
            move(found, draft)
    for found in (old, back):
        if not previous.exists() and found.is_dir():
            move(found, previous)
    for left in (staged, back, old, copy):
        shutil.rmtree(left, ignore_errors=True)


def _exchange(new: Path, draft: Path) -> None:
    """Move `new` to `draft` and that to the previous version; undo all of it where one step fails."""
    previous, old = previous_of(draft), _beside(draft, "old")
    if previous.exists():
        move(previous, old)
    try:
        move(draft, previous)
        try:
            move(new, draft)
        except BaseException:
            move(previous, draft)
            raise
    except BaseException:
        if old.exists():
            move(old, previous)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(draft: Path, role: str) -> Path:
    return draft.with_name(f".{draft.name}.{role}")
