"""The toy model behind a backend: what calibration and benchmarks load, without files or a runtime."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded, LoadOptions, Weights
from support.toys.toy_model import ToyExitModel, ToyModel
from support.toys.toy_pipeline import ToyTokenizer


class Tokenizer(ToyTokenizer):
    def mismatch(self, other: object) -> None:
        return None


class ToyBackend:
    """Loads a toy for any name; a draft is a noisier one. A token takes a byte of the cache's memory.

    keyed:   whether costs can be kept. step_seconds: of a target.
    noise:   name of a draft -> how far its table is from the target's, where that is not 0.4.
    prepare: called as `Loaded.prepare` with the model's name; None = there is nothing to prepare.
    """

    name = "toy"
    weights: Weights = "ir"

    def __init__(self, keyed: bool = True, prepare: Callable[[str], None] | None = None) -> None:
        self.keyed, self.step_seconds, self.prepare = keyed, 0.0002, prepare
        self.loaded: list[str] = []
        self.noise: dict[str, float] = {}

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        self.loaded.append(files.name)
        noise = self.noise.get(files.name, 0.4) if options.role == "draft" else 0.0
        seconds = 0.0002 if options.role == "draft" else self.step_seconds
        model = ToyModel(
            noise=noise, max_context=2300, step_seconds=seconds, cache_tokens=options.cache_bytes
        )
        if options.exit_layer:  # the later the exit, the better it guesses
            layer = options.exit_layer
            model = ToyExitModel(
                exit_noise=1 / layer, exit_layer=layer, max_context=2300, step_seconds=0.0002
            )
        exit_ = f"-{options.exit_layer}" if options.exit_layer else ""
        return Loaded(
            model,
            key=f"{files.name}-{options.role}{exit_}" if self.keyed else "",
            prepare=None if self.prepare is None else partial(self.prepare, files.name),
        )


@pytest.fixture
def toy_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ToyBackend:
    backend = ToyBackend()

    def resolve(spec: str | None, **options: Any) -> ModelFiles:
        return ModelFiles(tmp_path, spec or "toy", str(options["precision"]), spec or "default", "0")

    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("specport.runtime.loading.backend_for", lambda profile: backend)
    monkeypatch.setattr("specport.runtime.loading.resolve", resolve)
    for module in (
        "specport.runtime.together",
        "specport.bench.run",
        "specport.calibration.calibrate",
        "specport.tune.heats",
        "specport.tune.hand",
    ):
        monkeypatch.setattr(f"{module}.load_tokenizer", lambda folder: Tokenizer())
    monkeypatch.setattr("specport.runtime.loading.load_beside", lambda folder, other: Tokenizer())
    return backend
