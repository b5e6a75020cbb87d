"""Make the model that a user names ready to run. Conversion runs in a separate process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from specport.jobs import worker
from specport.models import cache, source
from specport.models import precision as precisions
from specport.models.folder_checks import ir_problem
from specport.models.json_file import CONFIG_FILE, TOKENIZER_FILE
from specport.models.kinds import mtp
from specport.models.source import ModelFiles, ir_fingerprint
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
    speech: bool | None = False,
) -> ModelFiles:
    """Return the model that `spec` names, downloaded and converted where needed.

    Arguments and errors as for `models.source.resolve_with`.
    """
    return source.resolve_with(
        convert, spec, precision=precision, progress=progress,
        trust_remote_code=trust_remote_code, verbose=verbose, weights=weights, speech=speech,
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


def mtp_module(
    target: ModelFiles, *, weights: str = "ir", progress: Progress = silent, verbose: bool = False
) -> ModelFiles | None:
    """Return the target's own module for multi-token prediction (`models.kinds.mtp`), converted where needed.

    None where its folder has none. Weights that are rounded are rounded to INT8: the module is small.
    Raises ModelError for a module of an unknown form, or one that cannot be converted.
    """
    module = target.own_module
    if module is None:
        return None
    name, identity = f"{target.name}-mtp", target.fingerprint
    return _module(partial(mtp.write, module), name, identity, target, weights, progress, verbose)


def mtp_head(
    head: ModelFiles,
    target: ModelFiles,
    *,
    weights: str = "ir",
    progress: Progress = silent,
    verbose: bool = False,
) -> ModelFiles:
    """Return a trained module (`specport quantize mtp`), converted like `mtp_module` for its target.

    head: with a bundle. Raises ModelError where it cannot be converted.
    """

    def write(folder: Path) -> None:
        for name in (mtp.JOIN, mtp.WEIGHTS, CONFIG_FILE):
            shutil.copyfile(head.folder / name, folder / name)

    found = _module(write, head.name, head.fingerprint, target, weights, progress, verbose)
    return replace(found, source=head.source, bundle=head.bundle)


def _module(
    write: Callable[[Path], None],
    name: str,
    identity: str,
    target: ModelFiles,
    weights: str,
    progress: Progress,
    verbose: bool,
) -> ModelFiles:
    """Return a module from the cache, where it is converted if needed.

    write: writes its folder (`models.kinds.mtp`). identity: of what it is made from.
    """
    wanted = precisions.parse(target.precision)
    precision = target.precision
    if wanted.base.startswith("int"):
        precision = "int8:sym" if wanted.symmetric else "int8"

    def build(work: Path) -> Mapping[str, Any]:
        about = {"name": name, "source": target.source, "precision": precision}
        if weights != "ir":
            write(work)
            return about
        decoder = work / "decoder"
        decoder.mkdir()
        write(decoder)
        shutil.copyfile(target.folder / TOKENIZER_FILE, decoder / TOKENIZER_FILE)  # conversions copy one
        versions = convert(decoder, work, precision, progress=progress, verbose=verbose)
        shutil.move(decoder / mtp.JOIN, work / mtp.JOIN)
        shutil.rmtree(decoder)
        return {**about, "versions": versions}

    key = source.entry_name(name, source.stored_name(precision, weights), identity)
    checks: dict[str, Any] = {"also_damaged": ir_problem} if weights == "ir" else {}
    entry = cache.entry(key, build, progress, **checks)
    identity = ir_fingerprint(entry.folder) if weights == "ir" else f"{identity}-mtp"
    return ModelFiles(entry.folder, name, precision, target.source, identity)
