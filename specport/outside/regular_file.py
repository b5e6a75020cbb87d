"""Read a whole regular file, never more than a bound, and never one that might not end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # a pipe without a writer would hang


def read_lines(path: Path, most: int, longest: int) -> Iterator[bytes]:
    """Yield the lines of a regular file, as they end at line feeds, without holding all of it.

    Raises as `read_bytes` does, for more than `most` bytes and for a line of more than `longest`.
    """
    with _opened(path, most) as file:
        left = most
        while line := file.readline(min(longest, left) + 1):
            left -= len(line)
            if left < 0:
                raise ValueError(f"it is larger than {most:,} bytes")
            if len(line) > longest:
                raise ValueError(f"it has a line of more than {longest:,} bytes")
            yield line


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file, or of a link to one.

    Raises FileNotFoundError; OSError where the system refuses; ValueError for a device, pipe or folder, for
    more than `most` bytes, and for a name that no file can have.
    """
    with _opened(path, most) as file:
        # Files of /proc say 0 bytes and grow: what is read counts, not what the system says.
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return data


def read_given(path: Path, most: int) -> bytes:
    """Return the content of a file that the user names for a command, which may be a pipe, as of <(command).

    Raises OSError, and ValueError for more than `most` bytes.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return data


@contextmanager
def _opened(path: Path, most: int) -> Iterator[BinaryIO]:
    flags = os.O_RDONLY | _NO_WAITING | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    if not stat.S_ISREG(os.stat(path).st_mode):  # asked first: to open a device may have an effect
        raise ValueError("it is not a regular file")
    with os.fdopen(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):  # it was replaced meanwhile
            raise ValueError("it is not a regular file")
        if found.st_size > most:
            raise ValueError(f"it is larger than {most:,} bytes")
        yield file
