"""Let one tuning run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from specport.errors import InvalidInput, ModelError
from specport.models.cache import cache_root
from specport.models.os_errors import cause


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock of tunings: two at once would measure each other. Raises InvalidInput and ModelError."""
    folder = cache_root() / "tune"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder / "lock"), timeout=0):
            yield
    except Timeout:
        raise InvalidInput(
            "another specport tune is running", "wait for it: two would disturb each other's measurements"
        ) from None
    except OSError as error:
        message, hint = cause(error)
        raise ModelError(f"cannot use {folder}: {message}", hint) from error
