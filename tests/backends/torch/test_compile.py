"""Compiled steps on torch: asked for by an environment variable, and never for an exact target."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.core.arrays import to_host
from specport.core.ports import Block, Row
from specport.errors import DeviceError
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import Loaded, LoadOptions

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.backends.torch import devices  # noqa: E402
from specport.backends.torch.load import load  # noqa: E402
from specport.backends.torch.slots.step import StepModule  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.save_hf(folder, "llama", 1)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path))
    monkeypatch.setenv(devices.COMPILE, "1")


def loaded(folder: Path, device: str = "torch-cpu", **options: Any) -> Loaded:
    files = resolve(str(folder), precision="fp32", weights="huggingface")
    return load(files, LoadOptions(load_profile(device), **options))


def module_of(found: Loaded) -> Any:
    return found.model.passes.runner.module  # type: ignore[attr-defined]


def test_a_draft_is_compiled_and_computes_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler is here")
    compiled = loaded(folder, role="draft")
    monkeypatch.setenv(devices.COMPILE, "0")
    plain = loaded(folder, role="draft")
    assert isinstance(module_of(plain), StepModule) and not isinstance(module_of(compiled), StepModule)
    assert plain.key != compiled.key
    found = []
    for model in (plain.model, compiled.model):
        handle = model.open()
        model.step([Row(handle, Block.chain(IDS[:30]), "last")])
        model.commit(handle, range(30))
        found.append(to_host(model.step([Row(handle, Block.chain(IDS[30:34]))]).logits).copy())
    assert abs(found[0] - found[1]).max() < 1e-4


def test_an_exact_target_and_a_gaudi_are_not_compiled(folder: Path) -> None:
    target = loaded(folder)
    assert isinstance(module_of(target), StepModule)
    assert any("not compiled" in note for note in target.notes)
    gaudi = loaded(folder, "gaudi-emulated", role="draft")
    assert isinstance(module_of(gaudi), StepModule) and not any("compiled" in note for note in gaudi.notes)


def test_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (str(tmp_path / "no-compiler"),))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(DeviceError, match=r"torch\.compile does not work here") as caught:
        loaded(folder, exact=False)
    assert "g++" in caught.value.hint and devices.COMPILE in caught.value.hint
