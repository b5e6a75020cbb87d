"""Make the model that a user names ready to run. Conversion runs in a separate process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specport.jobs import worker
from specport.models import source
from specport.models.source import ModelFiles
from specport.progress import Progress, silent

EXPORT = worker.Job("specport.quantize.convert.export:export")
SAVE = worker.Job("specport.quantize.convert.export:save")


def resolve(
    spec: str | None = None,
    *,
    precision: str = "int8",
    progress: Progress = silent,
    trust_remote_code: bool = False,
    verbose: bool = False,
    weights: str = "ir",
) -> ModelFiles:
    """Return the model that `spec` names, downloaded and converted where needed.

    Arguments and errors as for `models.source.resolve_with`.
    """
    return source.resolve_with(
        convert, spec, precision=precision, progress=progress,
        trust_remote_code=trust_remote_code, verbose=verbose, weights=weights,
    )  # fmt: skip


def convert(
    source: Path,
    target: Path,
    precision: str,
    *,
    progress: Progress = silent,
    trust_remote_code: bool = False,
    verbose: bool = False,
    weights: str = "ir",
) -> dict[str, str]:
    """Convert a .gguf file or Hugging Face folder to IR in the empty folder `target`.

    weights: "ir", or "huggingface" for a folder with safetensors.
    Return the versions of the converting packages. Raises ModelError; the caller then deletes `target`.
    """
    arguments: dict[str, Any] = {"source": str(source), "target": str(target), "precision": precision}
    arguments["trust_remote_code"] = trust_remote_code
    job = EXPORT if weights == "ir" else SAVE
    return dict(
        worker.run(job, arguments, f"{source} cannot be converted", progress=progress, verbose=verbose)
    )
