"""Read a whole regular file, never more than a bound, and never one that might not end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # a pipe without a writer would hang


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file, or of a link to one.

    Raises FileNotFoundError; OSError where the system refuses; ValueError for a device, pipe or folder, for
    more than `most` bytes, and for a name that no file can have.
    """
    flags = os.O_RDONLY | _NO_WAITING | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    if not stat.S_ISREG(os.stat(path).st_mode):  # asked first: to open a device may have an effect
        raise ValueError("it is not a regular file")
    with os.fdopen(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):  # it was replaced meanwhile
            raise ValueError("it is not a regular file")
        # Files of /proc say 0 bytes and grow: what is read counts, not what the system says.
        data = file.read(most + 1) if found.st_size <= most else b""
    if found.st_size > most or len(data) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return data
