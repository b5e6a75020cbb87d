"""The manifest of a folder: which files it has, their sizes and hashes, and what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MANIFEST_FILE = "specport-model.json"
FORMAT = 1
CHUNK = 1 << 22


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, as hexadecimal text."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write(folder: Path, about: Mapping[str, Any], name: str = MANIFEST_FILE) -> None:
    """Hash every file of `folder` and write its manifest, with `about` in it, last."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != name):
        stat = path.stat()
        entry = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": file_sha256(path)}
        files[path.relative_to(folder).as_posix()] = entry
    _store(folder / name, {"format": FORMAT, "about": dict(about), "files": files})


def read(folder: Path, name: str = MANIFEST_FILE) -> dict[str, Any] | None:
    """The manifest of `folder`, or None where there is none or it is damaged."""
    try:
        manifest = json.loads((folder / name).read_text(encoding="utf-8"))
        body = {key: manifest[key] for key in ("format", "about", "files")}
        if manifest["check"] != _check(body) or body["format"] != FORMAT or not body["files"]:
            return None
        return body
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def damage(folder: Path, name: str = MANIFEST_FILE, *, thorough: bool = False) -> str | None:
    """What is wrong with `folder`, or None when it may be used.

    Sizes and times are compared at every call; a file's hash only when its time has changed (a copied
    folder) or when `thorough`. An unchanged file that passes is noted, so that it is hashed once.
    """
    manifest = read(folder, name)
    if manifest is None:
        return "its manifest is missing or damaged"
    touched = False
    for file, entry in manifest["files"].items():
        path = folder / file
        try:
            stat = path.stat()
            if stat.st_size != entry["size"]:
                return f"{file} has {stat.st_size} bytes instead of {entry['size']}"
            if thorough or stat.st_mtime_ns != entry["mtime_ns"]:
                if file_sha256(path) != entry["sha256"]:
                    return f"{file} has other content than when it was made"
                touched |= stat.st_mtime_ns != entry["mtime_ns"]
                entry["mtime_ns"] = stat.st_mtime_ns
        except OSError:
            return f"{file} is missing"
    if touched:
        with suppress(OSError):  # a read-only cache is hashed again next time
            _store(folder / name, manifest)
    return None


def _check(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _store(path: Path, body: Mapping[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    text = json.dumps({**body, "check": _check(body)}, indent=1, sort_keys=True)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
