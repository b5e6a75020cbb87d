"""Manifest of a folder: its files with sizes and hashes, and what it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specport.models.atomic import write_json
from specport.models.safe_files import UnsafeFile, inside
from specport.outside import Format, Table

MANIFEST_FILE = "specport-model.json"
FORMAT = 1
CHUNK = 1 << 22
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class _File:
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    about: Table
    files: dict[str, _File]
    check: str


_MANIFEST = Format(_Manifest, "a manifest", version=FORMAT)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write(folder: Path, about: Mapping[str, Any], name: str = MANIFEST_FILE) -> None:
    """Hash every file of `folder` except links, then write the manifest with `about` in it."""
    files = {}
    found = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.name != name)
    for path in sorted(found):
        stat = path.stat()
        entry = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": file_sha256(path)}
        files[path.relative_to(folder).as_posix()] = entry
    store(folder / name, {"format": FORMAT, "about": dict(about), "files": files})


def read(folder: Path, name: str = MANIFEST_FILE) -> dict[str, Any] | None:
    """Return the manifest of `folder`, or None where it is missing or damaged.

    The names in it are untrusted and not checked yet; `damage` and `safe_files.inside` check them.
    """
    try:
        path = inside(folder, name)
    except (OSError, UnsafeFile):
        return None
    found = _MANIFEST.find(path)
    if found is None or not found.files:
        return None
    body = {"format": FORMAT, "about": found.about, "files": {n: asdict(e) for n, e in found.files.items()}}
    return body if found.check == _check(body) else None


def damage(folder: Path, name: str = MANIFEST_FILE, *, thorough: bool = False) -> str | None:
    """Return what is wrong with `folder`, or None when it can be used.

    Sizes and times are compared at every call. A file is hashed only when its time has changed (a copied
    folder) or when `thorough`. The new time of an unchanged file is stored, so that it is hashed once; not
    inside this package, whose files belong to pip or to git.
    """
    manifest = read(folder, name)
    if manifest is None:
        return "its manifest is missing or damaged"
    touched = False
    for file, entry in manifest["files"].items():
        try:
            path = inside(folder, file)
            stat = path.stat()
            if stat.st_size != entry["size"]:
                return f"{file} has {stat.st_size} bytes instead of {entry['size']}"
            if thorough or stat.st_mtime_ns != entry["mtime_ns"]:
                if file_sha256(path) != entry["sha256"]:
                    return f"the content of {file} has changed"
                touched |= stat.st_mtime_ns != entry["mtime_ns"]
                entry["mtime_ns"] = stat.st_mtime_ns
        except FileNotFoundError:
            return f"{file} is missing"
        except (UnsafeFile, OSError) as error:
            return f"{file} cannot be read: {error}"
    if touched and _PACKAGE not in folder.resolve().parents:
        with suppress(OSError):  # a read-only cache is hashed again at the next call
            store(folder / name, manifest)
    return None


def _check(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def store(path: Path, body: Mapping[str, Any]) -> None:
    """Write the content of a manifest with its check sum, atomically."""
    write_json(path, {**body, "check": _check(body)}, sort_keys=True)
