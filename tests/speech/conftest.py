"""Tiny Whisper models that the tests of speech share, and the same ones loaded on each runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from support.tiny import tiny_whisper

from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded
from specport.runtime.loading import Loader

DEVICES = ("xeon", "torch-cpu")


@dataclass(frozen=True)
class Models:
    """Folders: a target, smaller models of its own encoder and with another, and one that knows English."""

    target: Path
    same_encoder: Path
    other_encoder: Path
    english: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("whisper")
    target = tiny_whisper.make(root / "target")
    return Models(
        target,
        tiny_whisper.make(root / "same", seed=1, layers=1, encoder_of=target),
        tiny_whisper.make(root / "other", seed=2, layers=1, width=16),
        tiny_whisper.make(root / "english", seed=3, english=True),
    )


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def loaded(models: Models, device: str) -> tuple[ModelFiles, Loaded]:
    """The target on each runtime, in fp32."""
    return Loader.on(device, speech=True).target(str(models.target), "fp32", True)
