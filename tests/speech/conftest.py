"""Tiny Whisper models that the tests of speech share, and the same ones loaded on each runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.tiny import tiny_whisper

from specport.models.kinds.parallel import Parallel
from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded
from specport.runtime.loading import Loader

DEVICES = ("xeon", "torch-cpu")


@dataclass(frozen=True)
class Models:
    """Folders: a target, smaller models of its own encoder and with another, and one that knows English.

    parallel: drafts three tokens in one pass; of the target's encoder.
    """

    target: Path
    same_encoder: Path
    other_encoder: Path
    english: Path
    parallel: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("whisper")
    target = tiny_whisper.make(root / "target")
    same = tiny_whisper.make(root / "same", seed=1, layers=1, encoder_of=target)
    return Models(
        target,
        same,
        tiny_whisper.make(root / "other", seed=2, layers=1, width=16),
        tiny_whisper.make(root / "english", seed=3, english=True),
        _parallel(same, root / "parallel"),
    )


def _parallel(folder: Path, out: Path) -> Path:
    """Write a model with one more id, MASK."""
    from specport.quantize.convert.whisper import export, source
    from specport.quantize.speech.cut import with_mask

    out.mkdir()
    found = with_mask(source.read(folder))
    about = Parallel(3, found.shape.vocab - 1, (1.0, 1.5, 0.8))
    export.write(folder, out, replace(found, parallel=about))
    return out


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def loaded(models: Models, device: str) -> tuple[ModelFiles, Loaded]:
    """The target on each runtime, in fp32."""
    return Loader.on(device, speech=True).target(str(models.target), "fp32", True)
