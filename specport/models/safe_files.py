"""Check file names and files of untrusted folders before they are opened.

A manifest is untrusted: a name in it may lead out of its folder, and the named file may be a link, an endless
device or a pipe without a writer.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

# Device names reserved by Windows, with any extension, in any case; superscript digits count as digits.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])( *\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(
    r'[\x00-\x1f\x7f\\:<>"|?*]'
)  # separators, drives, streams, and characters that Windows forbids

_LINK_TAGS = (0xA0000003, 0xA000000C)  # Windows: IO_REPARSE_TAG_MOUNT_POINT and _SYMLINK


class UnsafeFile(ValueError):
    """A name that a manifest must not hold, or a file that is not a regular file of the folder."""


def check_name(name: object) -> str:
    """Return `name` if it is a relative path with forward slashes that stays in its folder on any system.

    Raises UnsafeFile for absolute paths, `..`, drive letters, backslashes and names reserved by Windows.
    """
    if not isinstance(name, str) or not name or _FORBIDDEN.search(name):
        raise UnsafeFile(f"{name!r} is no name of a file in the folder")
    for part in name.split("/"):
        if part in ("", ".", "..") or part[-1] in ". " or _DEVICES.fullmatch(part):
            raise UnsafeFile(f"{name!r} is no name of a file in the folder")
    return name


def inside(folder: Path, name: object) -> Path:
    """Return the path of the regular file `name` in `folder`. The folder itself may be a link.

    Links are refused, except those of the hub's cache, where each file of a snapshot links into the `blobs`
    folder beside it. Raises UnsafeFile, and OSError where there is no such file.
    """
    path = folder
    parts = check_name(name).split("/")
    for i, part in enumerate(parts):
        path = path / part
        found = path.lstat()
        if _is_link(found):
            if i + 1 == len(parts) and _is_hub_blob(folder, path):
                return path
            raise UnsafeFile(f"{name} is a link")
        if not (stat.S_ISREG if i + 1 == len(parts) else stat.S_ISDIR)(found.st_mode):
            raise UnsafeFile(f"{name} is not a regular file")
    return path


def check_folder(folder: Path) -> None:
    """Check with `inside` that all files below `folder` are regular. Raises UnsafeFile and OSError."""
    for here, folders, names in os.walk(folder, onerror=_raise):
        for name in folders:
            if _is_link(Path(here, name).lstat()):
                raise UnsafeFile(f"{Path(here, name).relative_to(folder).as_posix()} is a link")
        for name in names:
            inside(folder, Path(here, name).relative_to(folder).as_posix())


def regular(path: Path) -> Path:
    """Return `path` if it is a regular file or a link to one. Raises UnsafeFile, or OSError if it is missing.

    For folders that the user chose, whose files may be links. Reading a device or a pipe might never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnsafeFile(f"{path} is not a regular file")
    return path


def _is_link(found: os.stat_result) -> bool:
    """Return whether `path` is a symbolic link or, on Windows, a junction."""
    return stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", 0) in _LINK_TAGS


def _is_hub_blob(folder: Path, path: Path) -> bool:
    """Return whether `folder` is models--X/snapshots/REVISION of the hub's cache and `path` its blob."""
    place = folder.absolute()
    if place.parent.name != "snapshots":
        return False
    blobs = (place.parent.parent / "blobs").resolve()
    target = path.resolve()
    return target.parent == blobs and target.is_file()


def _raise(error: OSError) -> None:
    raise error
