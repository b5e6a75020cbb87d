"""Draft bundles: what is written is read, and what is wrong is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from specport.cli import main
from specport.errors import ModelError
from specport.models import bundle, manifest
from specport.models.bundle import Bundle
from specport.models.source import IR_BIN, IR_XML, resolve

MADE = Bundle(
    target="big", target_shape="", target_fingerprint="f" * 64, tokenizer="t", source="small",
    precision="int4", layers=(0, 2), num_layers=3, head=((0, 5), (9, 10)),
    measured={
        "device": "xeon", "processor": "cpu", "date": "today", "draft_ms": 5.0, "target_ms": 40.0,
        "cost": 0.125, "mean_acceptance_length": 2.5, "acceptance_by_depth": [0.7, 0.5], "speed_up": 1.4,
        "speed_up_range": [1.1, 1.8], "same_text": 8, "prompts": 8, "max_new_tokens": 64,
    },
)  # fmt: skip
CONFIG = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 11, "torch_dtype": "float32"}))
    return folder


@pytest.fixture
def made(tmp_path: Path, target: Path) -> Path:
    folder = tmp_path / "draft"
    folder.mkdir()
    (folder / IR_XML).write_text("<net></net>\n")
    (folder / IR_BIN).write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    bundle.write(folder, replace(MADE, target_shape=bundle.shape(target)))
    return folder


def test_a_bundle_is_read_as_it_was_written(made: Path, target: Path) -> None:
    found = bundle.read(made, thorough=True)
    assert found == replace(MADE, target_shape=bundle.shape(target))
    assert found.head_tokens == (0, 1, 2, 3, 4, 9)
    assert replace(found, head=None).head_tokens is None
    assert found.pays and not replace(found, measured={"speed_up": 0.99}).pays
    assert found.reach == (0.7, 0.5) and replace(found, measured={}).reach == ()
    assert not replace(found, measured={}).pays
    files = resolve(str(made))
    assert files.bundle == found and files.precision == "int4" and files.name == "draft"


@pytest.mark.parametrize("tokens", [(), (4,), (0, 1, 2), (0, 2, 3, 9), tuple(range(0, 40, 3))])
def test_ranges_hold_the_same_tokens(tokens: tuple[int, ...]) -> None:
    assert bundle.expand(bundle.ranges(tokens)) == tokens


@pytest.mark.parametrize(
    "wrong",
    [
        *({"head": head} for head in ([[3, 2]], [[-1, 4]], [[0, 1 << 40]], [[0]], [["a", 3]])),
        *({"measured": {"acceptance_by_depth": shares}} for shares in ([1.5], ["a"], 3, [None])),
        {"measured": None},
    ],
)
def test_what_means_nothing_is_no_bundle(made: Path, wrong: dict[str, object]) -> None:
    about = manifest.read(made, bundle.BUNDLE_FILE)
    assert about is not None
    manifest.write(made, {**about["about"], **wrong}, bundle.BUNDLE_FILE)
    with pytest.raises(ModelError, match="no draft bundle's manifest"):
        bundle.read(made)


def test_damage_and_newer_formats_are_said(made: Path) -> None:
    about = manifest.read(made, bundle.BUNDLE_FILE)
    assert about is not None
    manifest.write(made, {**about["about"], "format": 99}, bundle.BUNDLE_FILE)
    with pytest.raises(ModelError, match=r"format 99.*update specport"):
        bundle.read(made)
    manifest.write(made, {"format": 1, "target": "x"}, bundle.BUNDLE_FILE)
    with pytest.raises(ModelError, match="no draft bundle's manifest"):
        bundle.read(made)
    manifest.write(made, about["about"], bundle.BUNDLE_FILE)
    (made / IR_BIN).write_bytes(b"weighty")
    with pytest.raises(ModelError, match=r"openvino_model.bin has other content.*specport quantize"):
        bundle.read(made)
    (made / IR_BIN).unlink()
    with pytest.raises(ModelError, match="is missing"):
        bundle.read(made)


def test_only_its_kind_of_target_will_do(made: Path, target: Path) -> None:
    found = bundle.read(made)
    # Another precision of the same model is the same kind; another size is not.
    (target / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 11, "torch_dtype": "bfloat16"}))
    found.check_target(target, "big")
    (target / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 11, "num_hidden_layers": 5}))
    with pytest.raises(ModelError, match="built for big, not for other"):
        found.check_target(target, "other")


def test_auto_finds_the_bundle_that_was_built_last(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    assert bundle.registered("f" * 64) is None
    bundle.register(made, "f" * 64)
    assert bundle.registered("f" * 64) == made and bundle.registered("e" * 64) is None
    (made / IR_BIN).write_bytes(b"")
    assert bundle.registered("f" * 64) is None
    for text in ("", "[]", '{"folder": 3}', "{}"):
        (tmp_path / "cache" / "drafts" / f"{'f' * 24}.json").write_text(text)
        assert bundle.registered("f" * 64) is None


def test_inspect_shows_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "inspect", str(made)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "big",
        "2 of 3: 0, 2",
        "cut to 6 tokens",
        "0.12 of the target's",
        "0.70, 0.50",
        "1.40 times",
    ):
        assert words in shown
    assert main(["quantize", "inspect", str(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == [0, 2]
    (made / IR_BIN).write_bytes(b"")
    assert main(["quantize", "inspect", str(made)]) == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--out is missing"),
        (["--out", "x", "--layers", "3", "--speed-up", "2"], "give one of them"),
        (["--out", "x", "--layers", "0"], "layers is 0"),
        (["--out", "x", "--speed-up", "0.5"], "speed_up is 0.5"),
        (["--out", "x", "--head-tokens", "-1"], "head_tokens is -1"),
        (["--out", "x", "--distil", "-5"], "distil_tokens is -5"),
        (["--out", "."], "is there already"),
        (["inspect", "."], "no draft bundle"),
        (["export", ".", "--to", "xml", "--out", "y"], "unknown layout"),
    ],
)
def test_bad_input(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", *arguments]) == 2
    assert words in capsys.readouterr().err
