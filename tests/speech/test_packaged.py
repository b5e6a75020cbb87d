"""Whisper models and weights out of packages. No network."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from specport.drafters.spec import parse
from specport.errors import ModelError
from specport.models.fetch import packages
from specport.speech import packaged
from specport.speech.packaged import PackagedModel
from specport.speech.weights import PackagedWeights

FILES = {
    "one==1": {"one/data/model.bin.part1": b"first", "one/data/tokenizer.json": b"{}"},
    "two==1": {"two/data/model.bin.part2": b"second"},
    "net==1": {"net/w.pt": b"head" + np.arange(6, dtype="<f4").tobytes()},
}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(requirement: str, folder: Path, what: str = "") -> Path:
        path = folder / "a.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name, data in FILES[requirement].items():
                wheel.writestr(name, data)
        return path

    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "download", download)


def model(second: bytes = b"second") -> PackagedModel:
    parts = (
        ("one==1", "/model.bin.part1", sha(b"first")),
        ("two==1", "/model.bin.part2", sha(second)),
    )
    return PackagedModel("toy", parts, {"tokenizer.json": sha(b"{}")})


def test_parts_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "MODELS", {"toy": model()})
    found = Path(packaged.named("toy"))
    assert (found / "model.bin").read_bytes() == b"firstsecond"
    assert (found / "tokenizer.json").read_bytes() == b"{}"
    assert packaged.with_named(parse("suffix|universal(toy)")) == parse(f"suffix|universal({found})")
    assert packaged.named("other") == "other"
    (tmp_path / "toy").mkdir()
    monkeypatch.chdir(tmp_path)
    assert packaged.named("toy") == "toy"  # a folder of the user's own comes first


def test_a_cache_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars and brackets in its path are no part of a draft expression."""
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "a|b (c)"))
    monkeypatch.setattr(packaged, "MODELS", {"toy": model()})
    spec = packaged.with_named(parse("suffix|universal(toy)|toy"))
    (folder,) = spec.models
    assert folder.startswith(str(tmp_path / "a|b (c)")) and Path(folder, "model.bin").is_file()
    assert spec.kinds == ["suffix", "universal", "model"] and parse(str(spec)) == spec


def test_another_file_is_refused() -> None:
    with pytest.raises(ModelError, match="SHA-256"):
        packaged.folder(model(b"expected"))


def test_weights_lie_where_the_layout_says() -> None:
    data = FILES["net==1"]["net/w.pt"]
    about = PackagedWeights("net", "net==1", "net/w.pt", sha(data), {"a": (4, (2, 2)), "b": (20, (2,))})
    found = about.load()
    assert found["a"].tolist() == [[0, 1], [2, 3]] and found["b"].tolist() == [4, 5]
