"""Which models are diffusion models, and which ways to decode them are lossy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specport.diffusion.load import is_diffusion, lossy
from specport.diffusion.options import DiffusionOptions
from specport.models.fetch import hub


def test_a_hub_model_that_is_converted_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of OpenVINO IR has no other weights. It is looked at like any other."""
    monkeypatch.setattr(hub, "fetch", lambda spec, progress: tmp_path)
    (tmp_path / "openvino_model.xml").touch()
    config = {"model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not is_diffusion("org/model-int8-ov")
    config = {"model_type": "sdar", "vocab_size": 151936}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_diffusion("org/model-int8-ov") and is_diffusion(str(tmp_path))


def test_what_is_lossy_has_a_name() -> None:
    assert lossy(DiffusionOptions(order="position")) == ""
    assert lossy(DiffusionOptions(order="position", layout="same-step")) == ""
    assert lossy(DiffusionOptions(order="confidence")) == "SimSD by confidence"
    assert lossy(DiffusionOptions(order="position", layout="released")) == "SimSD released"
