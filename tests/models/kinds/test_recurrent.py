"""Bundles with a recurrent head: their shape and weights, what is refused, and those that are shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import tiny_models
from support.tiny.tiny_head import COLUMNS, SHAPE, save_head, weights

from specport.cli import main
from specport.errors import ModelError
from specport.models import bundle, manifest, shipped
from specport.models.fetch import download
from specport.models.kinds.recurrent import SCALE, WEIGHTS, Recurrent, dequantized, quantized, read_weights
from specport.models.shipped import ORIGIN, is_head, shipped_head
from specport.runtime.conversion import resolve

pytest.importorskip("safetensors")
pytest.importorskip("torch")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    tiny_models.save_hf(folder, "llama")
    return folder


def test_a_bundle_says_what_the_head_is(tmp_path: Path, target: Path) -> None:
    folder = save_head(tmp_path / "head", target)
    found = bundle.read(folder, thorough=True)
    assert found.recurrent == SHAPE and found.head_tokens == COLUMNS
    files = resolve(str(folder), precision="int8")
    assert files.bundle == found and files.folder == folder and files.precision == "int8"
    found.check_target(target, "tiny")
    assert is_head(folder) and not is_head(target) and not is_head(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "export", "HEAD", "--to", "hf", "--out", "out"),
        ("quantize", "export", "HEAD", "--to", "genai", "--out", "out"),
        ("adapt", "on", "--draft", "HEAD"),
        ("adapt", "--draft", "HEAD"),
    ],
)
def test_a_head_is_no_model_of_its_own(
    command: tuple[str, ...],
    tmp_path: Path,
    target: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    head = str(save_head(tmp_path / "head", target))
    assert main([head if word == "HEAD" else word for word in command]) == 2
    assert f"{head} is a draft head, which only runs with its target" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_are_read_as_they_were_written(tmp_path: Path, target: Path) -> None:
    folder, wanted = save_head(tmp_path / "head", target), weights()
    found = read_weights(folder, SHAPE)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    wide = dequantized(found, SHAPE)
    assert np.array_equal(wide["join"], wanted["join"] * wanted["join" + SCALE].astype(np.float32))
    assert sum(array.size for array in wide.values()) == SHAPE.num_parameters


def test_rounding_to_int8_keeps_each_row() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    rows[2] *= 1000.0
    rows[3] = 0.0
    values, scale = quantized(rows)
    back = values * scale.astype(np.float32)
    assert (np.abs(back - rows) <= 0.51 * scale.astype(np.float32) + 1e-3 * np.abs(rows)).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", ()), ("layers", (3, 1)), ("layers", (-1, 2)), ("layers", (1.5,)), ("width", 0),
        ("inner", True), ("blocks", 99), ("depth", 1 << 40),
    ],
)  # fmt: skip
def test_a_shape_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Recurrent(**{**vars(SHAPE), field: value})


def test_a_manifest_with_a_wrong_shape_is_refused(tmp_path: Path, target: Path) -> None:
    folder = save_head(tmp_path / "head", target)
    path = folder / bundle.BUNDLE_FILE
    about = json.loads(path.read_text())["about"]
    about["recurrent"]["layers"] = ["last"]
    path.unlink()
    manifest.write(folder, about, bundle.BUNDLE_FILE)
    with pytest.raises(ModelError, match="manifest"):
        bundle.read(folder)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _renamed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"join"', b'"jojn"'))


def _long_header(path: Path) -> None:
    path.write_bytes((1 << 60).to_bytes(8, "little") + path.read_bytes()[8:])


def _not_finite(path: Path) -> None:
    from safetensors.numpy import save_file

    changed = weights()
    changed["keep"][3] = np.nan
    save_file(changed, path)


@pytest.mark.parametrize("damage", [_cut, _renamed, _long_header, _not_finite, Path.unlink])
def test_damaged_weights_are_refused(damage: Any, tmp_path: Path, target: Path) -> None:
    folder = save_head(tmp_path / "head", target)
    damage(folder / WEIGHTS)
    with pytest.raises(ModelError):
        read_weights(folder, SHAPE)
    if damage is not Path.unlink:  # without weights it is no head at all
        with pytest.raises(ModelError, match="damaged"):
            bundle.read(folder, thorough=True)


def test_weights_of_another_shape_are_refused(tmp_path: Path, target: Path) -> None:
    folder = save_head(tmp_path / "head", target)
    with pytest.raises(ModelError, match=r"block\.2"):
        read_weights(folder, Recurrent((0, 1), 64, 96, 3, 3))


def test_a_shipped_head_is_found_for_its_target_only(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    assert shipped_head(target, "tiny", "", "default") is None
    head = save_head(tmp_path / "shipped" / "tiny", target)
    assert shipped_head(target, "tiny", "", str(target)) == head  # by the sketch of its weights
    other = tmp_path / "other"
    model = tiny_models.hf_model("llama")
    model.model.norm.weight.data = model.model.norm.weight.data.flip(0)
    model.save_pretrained(other)
    tiny_models.save_tokenizer(other)
    assert shipped_head(other, "other", "", "default") is None
    assert shipped_head(other, "other", "none", str(other)) == head  # by the fingerprint
    _cut(head / WEIGHTS)
    assert shipped_head(target, "tiny", "", str(target)) is None


def test_the_default_model_is_known_by_its_file(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    head = save_head(
        tmp_path / "shipped" / "tiny", target, target_sketch=(1.0,) * 65, provenance={ORIGIN: download.SHA256}
    )
    monkeypatch.setattr(manifest, "_PACKAGE", tmp_path)
    before = {path.name: path.read_bytes() for path in head.iterdir()}
    for path in head.iterdir():
        path.touch()  # as after an installation
    assert shipped_head(target, "tiny", "", "default") == head
    assert shipped_head(target, "tiny", "", str(target)) is None
    bundle.read(head, thorough=True)
    assert {path.name: path.read_bytes() for path in head.iterdir()} == before  # nothing was written
    monkeypatch.setattr(manifest, "_PACKAGE", tmp_path / "elsewhere")
    bundle.read(head)  # a folder of the user's: the new time is stored
    assert {path.name: path.read_bytes() for path in head.iterdir()} != before


def test_the_head_of_the_default_model_is_small_and_says_where_it_comes_from() -> None:
    """What is in the package: whole, of at most 15 MB, for the file that the default model is made from."""
    (folder,) = (path.parent for path in shipped.FOLDER.glob(f"*/{WEIGHTS}"))
    assert folder.name == download.NAME
    found = bundle.read(folder, thorough=True)
    assert found.recurrent is not None and found.provenance[ORIGIN] == download.SHA256
    assert read_weights(folder, found.recurrent)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 15 << 20
    assert {"date", "command", "versions", "text", "licence"} <= found.provenance.keys()
    assert (
        found.provenance["command"] == "python examples/shipped_head.py"
    )  # no path of the machine that built it
    assert found.pays and len(found.distilled["survival"]) == found.recurrent.depth
