"""Translate an OSError for the user: which file, what is wrong, and the next step."""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_USE = {32, 33}  # Windows: another program has the file open, or a part of it locked
_IN_TEXT = re.compile(r"\(os error (\d+)\)")  # format of Rust libraries such as safetensors
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy's, without a number: the disk is full


class Cause(NamedTuple):
    """Hold what went wrong, and the next step."""

    message: str
    hint: str


def is_local(error: BaseException) -> bool:
    """Return whether an OSError is of this machine's files, and not of the network."""
    known = _FULL | _FORBIDDEN | {errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENOTDIR}
    return isinstance(error, OSError) and _code(error) in known


def _code(error: BaseException) -> int | None:
    """Return the operating system's number of an error, from its text where it has none."""
    code: int | None = getattr(error, "errno", None)
    if code is None and (found := _IN_TEXT.search(str(error))):
        return int(found[1])
    return errno.ENOSPC if code is None and _SHORT_WRITE.search(str(error)) else code


def cause(error: Exception, full: str = "free some space and run the same command again") -> Cause:
    """Return the cause of a failed read or write.

    full: the next step where the disk is full.
    Errors of other libraries are parsed from their text.
    """
    code = _code(error)
    names = [str(name) for name in (getattr(error, n, None) for n in ("filename", "filename2")) if name]
    where = " and ".join(names)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if code in _FULL:
        return Cause(f"the disk is full{f' at {where}' if where else ''} ({reason})", full)
    if code == errno.EFBIG:
        return Cause(f"{where}: {reason}" if where else reason, full)
    if getattr(error, "winerror", None) in _IN_USE:
        return Cause(f"{where or 'a file'} is in use ({reason})", "close the program that is using it")
    if code in _FORBIDDEN:
        return Cause(
            f"no permission for {where or 'a file'} ({reason})", "change it, or choose another folder"
        )
    if code == errno.ENOENT:
        return Cause(f"{where or 'a file'} is missing ({reason})", "run the same command again")
    return Cause(f"{where}: {reason}" if where else reason, "fix that and run the same command again")
