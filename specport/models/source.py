"""Find the model that a user names: a folder with weights and tokenizer, ready to run.

A model in another format than the device's backend loads (OpenVINO IR or a Hugging Face folder) is converted
once by the caller's converter and kept in the cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from specport.errors import InvalidInput, ModelError
from specport.models import bundle, cache, shipped
from specport.models import precision as precisions
from specport.models.bundle import Bundle
from specport.models.fetch import download, hub
from specport.models.folder_checks import (
    IR_BIN,
    IR_XML,
    check_kind,
    check_weights,
    folder_problem,
    ir_problem,
)
from specport.models.gguf import file as gguf_file
from specport.models.gguf import split as gguf_split
from specport.models.identity import fingerprint
from specport.models.json_file import TOKENIZER_FILE, read_json
from specport.models.kinds import mtp
from specport.models.kinds.recurrent import WEIGHTS
from specport.models.kinds.whisper import CTRANSLATE2, CTRANSLATE2_FILE, speech_form
from specport.outside.places import expanded
from specport.progress import Progress, part, silent

# Those of `quantize.convert.from_gguf.config`.
GGUF_ARCHITECTURES = (
    "llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "falcon", "bloom", "gpt2",
    "stablelm", "starcoder2", "nemotron", "mamba", "lfm2",
)  # fmt: skip
RECIPE = 1  # increase when the same model would convert to different files
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class ModelFiles:
    """Hold the files of a model that a backend can load.

    folder:      openvino_model.xml/.bin or *.safetensors, config.json, tokenizer.json and related files.
    name:        short name for people.
    precision:   as `specport.models.precision` writes it; "ir" for the user's own IR, where it is unknown.
    source:      what the user named, or "default".
    fingerprint: hash of the weights, independent of the path.
    bundle:      facts about a draft that `specport quantize` built; None for any other model. One with a
                 head on hidden states has no weights but the head's.
    origin:      the Hugging Face folder that the weights came from; None = another format.
    """

    folder: Path
    name: str
    precision: str
    source: str
    fingerprint: str
    bundle: Bundle | None = None
    origin: Path | None = None

    @cached_property
    def own_module(self) -> mtp.Module | None:
        """The model's own module for multi-token prediction; None where there is none.

        Headers of the weights are read at the first use. Raises ModelError as `mtp.find` does.
        """
        return None if self.origin is None else mtp.find(self.origin)


class Convert(Protocol):
    """Convert a .gguf file or Hugging Face folder into the empty folder `target`.

    Returns the versions of the packages that did it. Raises ModelError.
    """

    def __call__(
        self,
        source: Path,
        target: Path,
        precision: str,
        *,
        progress: Progress,
        trust_remote_code: bool,
        verbose: bool,
        weights: str,
    ) -> Mapping[str, str]: ...


def resolve_with(
    convert: Convert,
    spec: str | None = None,
    *,
    precision: str = "int8",
    progress: Progress = silent,
    trust_remote_code: bool = False,
    verbose: bool = False,
    weights: str = "ir",
    speech: bool | None = False,
) -> ModelFiles:
    """Return the model that `spec` names, downloaded where needed, and converted by `convert`.

    spec:      None or "default" (the embedded model), a Hugging Face folder, a folder with OpenVINO IR, a
               .gguf file or any part of a split one, or a hub id (`org/name`, `org/name@revision`).
    precision: as `specport.models.precision` parses it; must be available for `weights`.
    weights:   "ir" for OpenVINO, "huggingface" for a folder with safetensors (`registry.Backend.weights`).
    trust_remote_code: let a Hugging Face model run its own Python code during conversion.
    speech:    whether a speech model is wanted: Whisper in a Hugging Face folder or in CTranslate2's format;
               None = a model of either kind.
    Raises ModelError or InvalidInput with the next step.
    """
    wanted = precisions.stored(precision, weights)
    options = _Options(convert, str(wanted), progress, trust_remote_code, verbose, weights, speech)
    if speech and (spec is None or spec == "default"):
        raise InvalidInput("no speech model is named", "give a folder of Whisper, or a hub id")
    if spec is None or spec == "default":
        return _from_default(options)
    path = located(spec, part(progress, 0.0, 0.3))
    if path.is_file():
        if speech:
            raise ModelError(f"{path} is no speech model", "give a folder of Whisper, or a hub id")
        return _from_gguf(path, spec, options)
    local = expanded(spec).is_dir()
    return _from_folder(path, spec, options, "" if local else spec.partition("@")[0].rpartition("/")[2])


def original(spec: str | None, progress: Progress = silent) -> Path:
    """Return the weights that `spec` names before any conversion: a GGUF file or a folder.

    Raises ModelError where only the converted model exists.
    """
    if spec is None or spec == "default":
        return download.default_gguf(progress)
    path = located(spec, progress)
    if path.is_dir() and (path / IR_XML).is_file():
        raise ModelError(
            f"{path} holds converted weights only",
            "name the GGUF file or Hugging Face folder from which it was converted",
        )
    if path.is_file():
        return gguf_split.parts(path)[0] if path.suffix == ".gguf" else path
    only = None if [*path.glob("*.safetensors")] else gguf_split.first_of([*path.glob("*.gguf")])
    return path if only is None else gguf_split.parts(only)[0]


def located(spec: str, progress: Progress) -> Path:
    """Return the file or folder that a user names, downloaded where it is a hub id."""
    path = expanded(spec)
    if path.is_file() or (spec and path.is_dir()):  # Path("") would be the working folder
        return path
    if not _HUB_ID.fullmatch(spec) or spec.endswith((".gguf", ".xml", ".bin")):
        raise ModelError(
            f"there is no file or folder {spec!r}",
            "give a model folder, a .gguf file or a hub id like org/name; the default model needs no --model",
        )
    return hub.fetch(spec, progress)


@dataclass(frozen=True)
class _Options:
    convert: Convert
    precision: str
    progress: Progress
    trust_remote_code: bool
    verbose: bool
    weights: str
    speech: bool | None


def _from_default(options: _Options) -> ModelFiles:
    # The hash of the GGUF file is known, so a converted model is found without the file.
    def build(work: Path) -> Mapping[str, Any]:
        gguf = download.default_gguf(part(options.progress, 0.0, 0.2))
        return _convert(gguf, work, download.NAME, "default", options)

    return _cached(download.NAME, download.SHA256, "default", options, build)


def _from_gguf(path: Path, spec: str, options: _Options) -> ModelFiles:
    files = gguf_split.parts(path)
    architecture = gguf_file.read_architecture(files[0])
    if architecture not in GGUF_ARCHITECTURES:
        raise ModelError(
            f"{path}: GGUF architecture {architecture!r} is not supported",
            f"use the model's Hugging Face folder; GGUF files work of {', '.join(GGUF_ARCHITECTURES)}",
        )
    name = gguf_split.stem(path)

    def build(work: Path) -> Mapping[str, Any]:
        gguf_split.read(path)  # an incomplete file is reported before the converter is loaded
        return _convert(files[0], work, name, spec, options)

    identity = fingerprint(path.parent, [], [file.name for file in files])
    return _cached(name, identity, spec, options, build)


def _from_folder(path: Path, spec: str, options: _Options, name: str = "") -> ModelFiles:
    name = name or path.resolve().name
    check_kind(path, options.speech)
    if shipped.is_head(path) or shipped.is_mtp_head(path):
        head = bundle.read(path)
        parts = [mtp.JOIN, mtp.WEIGHTS] if head.mtp else [WEIGHTS]
        identity = fingerprint(path, [bundle.BUNDLE_FILE], parts)
        return ModelFiles(path, name, head.precision, spec, identity, head)
    if (path / mtp.JOIN).is_file():
        raise ModelError(f"{path} is a module of a model, for multi-token prediction", "name the model")
    weights = sorted(p.name for p in path.glob("*.safetensors"))
    if (path / IR_XML).is_file() and not (options.weights == "huggingface" and weights):
        if options.weights != "ir":
            raise ModelError(
                f"{path} holds OpenVINO IR, which this device does not run",
                "name the GGUF file or Hugging Face folder it came from; for a draft that specport built: "
                "specport quantize export --to hf",
            )
        wrong = ir_problem(path)
        if wrong:
            raise ModelError(f"{path} cannot be used: {wrong}", "export the model again with its tokenizer")
        found = bundle.read(path) if (path / bundle.BUNDLE_FILE).is_file() else None
        precision = found.precision if found else _noted_precision(path)
        return ModelFiles(path, name, precision, spec, ir_fingerprint(path), found)
    if not weights and speech_form(path) == CTRANSLATE2:
        small = [p.name for p in path.iterdir() if p.suffix in (".json", ".txt") and p.is_file()]
        identity = fingerprint(path, sorted(small), [CTRANSLATE2_FILE])
        return _cached(name, identity, spec, options, lambda work: _convert(path, work, name, spec, options))
    if not (path / "config.json").is_file() or not weights:
        ggufs = sorted(path.glob("*.gguf"))
        only = gguf_split.first_of(ggufs)
        if only is not None:
            return _from_gguf(only, spec, options)
        what = f"{len(ggufs)} .gguf files" if ggufs else "no config.json with .safetensors, no IR, no .gguf"
        raise ModelError(f"{path} holds {what}", "name the model's folder or one .gguf file")
    check_weights(path, weights)
    small = [p.name for p in path.iterdir() if p.suffix in (".json", ".jinja", ".model") and p.is_file()]
    identity = fingerprint(path, small, weights)
    if options.weights == "huggingface" and (path / TOKENIZER_FILE).is_file():
        found = bundle.read(path) if (path / bundle.BUNDLE_FILE).is_file() else None
        return ModelFiles(path, name, options.precision, spec, identity, found, path)
    files = _cached(name, identity, spec, options, lambda work: _convert(path, work, name, spec, options))
    return replace(files, origin=path)


def _cached(name: str, identity: str, spec: str, options: _Options, build: Any) -> ModelFiles:
    stored = stored_name(options.precision, options.weights)
    key = entry_name(name, stored, identity)
    problem = ir_problem if options.weights == "ir" else folder_problem
    entry = cache.entry(key, build, options.progress, also_damaged=problem)
    identity = ir_fingerprint(entry.folder) if options.weights == "ir" else f"{identity}-{stored}"
    return ModelFiles(entry.folder, name, options.precision, spec, identity)


def stored_name(precision: str, weights: str) -> str:
    """Return a weight format as it stands in the name of a cache entry: file names must not hold a colon."""
    return re.sub(r"[^\w.-]+", "-", precision) + "-hf" * (weights == "huggingface")


def entry_name(name: str, stored: str, identity: str) -> str:
    """Return the name of a model's cache entry. identity: of what it is converted from."""
    room = min(80, 130 - len(stored))
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:room] or "model"
    return f"{label}-{stored}-{identity[:12]}-{RECIPE}"


def _convert(source: Path, work: Path, name: str, spec: str, options: _Options) -> Mapping[str, Any]:
    versions = options.convert(
        source, work, options.precision,
        progress=part(options.progress, 0.2, 1.0),
        trust_remote_code=options.trust_remote_code,
        verbose=options.verbose,
        weights=options.weights,
    )  # fmt: skip
    return {"name": name, "source": spec, "precision": options.precision, "versions": versions}


def ir_fingerprint(folder: Path) -> str:
    """Return the fingerprint of an IR folder's weights and graph."""
    return fingerprint(folder, [IR_XML], [IR_BIN])


def _noted_precision(folder: Path) -> str:
    noted = read_json(folder / "specport-model.json").get("about", {})
    return str(noted.get("precision", "ir")) if isinstance(noted, dict) else "ir"
