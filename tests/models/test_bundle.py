"""Draft bundles: what is written is read, and what is wrong is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from support.tiny import tiny_models

from specport.cli import main
from specport.errors import ModelError
from specport.models import bundle, manifest
from specport.models.bundle import Bundle
from specport.models.folder_checks import IR_BIN, IR_XML
from specport.models.weight_sketch import same, sketch
from specport.runtime.conversion import resolve
from specport.text.tokenizer import load_tokenizer

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
    assert found.reach == (0.7, 0.5) and found.cost == 0.125
    without = replace(found, measured={})
    assert without.reach == () and without.cost is None
    # On the user's own texts, after an adaptation to them.
    for told, reach in (({"reach": [0.9, 0.8, 0.7]}, (0.9, 0.8, 0.7)), ({}, (0.7, 0.5))):
        assert replace(found, provenance={"adapted": told}).reach == reach
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
    with pytest.raises(ModelError, match="not a draft bundle's manifest"):
        bundle.read(made)


def test_damage_and_newer_formats_are_said(made: Path) -> None:
    about = manifest.read(made, bundle.BUNDLE_FILE)
    assert about is not None
    manifest.write(made, {**about["about"], "format": 99}, bundle.BUNDLE_FILE)
    with pytest.raises(ModelError, match=r"format 99.*update specport"):
        bundle.read(made)
    manifest.write(made, {"format": 1, "target": "x"}, bundle.BUNDLE_FILE)
    with pytest.raises(ModelError, match="not a draft bundle's manifest"):
        bundle.read(made)
    manifest.write(made, about["about"], bundle.BUNDLE_FILE)
    (made / IR_BIN).write_bytes(b"weighty")
    with pytest.raises(ModelError, match=r"the content of openvino_model.bin has changed.*specport quantize"):
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


def with_norm(folder: Path, seed: int, dtype: str = "F32") -> Path:
    """A Hugging Face folder of the target's form, with the tiny tokenizer and weights by the seed."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 11}))
    tiny_models.save_tokenizer(folder)
    weights = np.random.default_rng(seed).normal(2.0, 0.2, 96).astype(np.float32)
    bits = weights.view(np.uint32)
    if dtype == "BF16":
        data = ((bits + 0x8000) >> 16).astype("<u2").tobytes()
    else:
        data = weights.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    header = {"model.norm.weight": {"dtype": dtype, "shape": [96], "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def as_ir(folder: Path, out: Path, converted: bool, shift: float = 0.0) -> Path:
    """The same last norm as OpenVINO writes it."""
    out.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((folder / name).read_bytes())
    data = (folder / "model.safetensors").read_bytes()
    weights = np.frombuffer(data[8 + int.from_bytes(data[:8], "little") :], "<f4") + np.float32(shift)
    stored = weights.astype("<f2" if converted else "<f4").tobytes()
    (out / IR_BIN).write_bytes(b"12345678" + stored)
    element = "f16" if converted else "f32"
    const = f'<data element_type="{element}" shape="1, 1, 96" offset="8" size="{len(stored)}" />'
    edges = [(0, 1), (1, 2)] if converted else [(0, 2)]
    (out / IR_XML).write_text(
        "<net><layers>"
        f'<layer id="0" name="c" type="Const">{const}</layer><layer id="1" name="d" type="Convert" />'
        '<layer id="2" name="__module.model.norm/aten::mul/Multiply_1" type="Multiply" />'
        "</layers><edges>"
        + "".join(f'<edge from-layer="{a}" to-layer="{b}" />' for a, b in edges)
        + "</edges></net>\n"
    )
    return out


def check(made: bundle.Bundle, folder: Path, name: str, fingerprint: str, draft: Path) -> None:
    made.check_target(folder, name, fingerprint, load_tokenizer(draft).mismatch(load_tokenizer(folder)))


def test_a_model_of_the_same_form_with_other_weights_is_refused(tmp_path: Path) -> None:
    """As Qwen2.5-1.5B beside a draft for Qwen2.5-Coder-1.5B; any format of the right one does."""
    right, wrong = with_norm(tmp_path / "right", 1), with_norm(tmp_path / "wrong", 2)
    made = replace(
        MADE, target_shape=bundle.shape(right), tokenizer=load_tokenizer(right).fingerprint,
        target_sketch=sketch(right),
    )  # fmt: skip
    for dtype in ("F16", "BF16"):
        check(made, with_norm(tmp_path / dtype, 1, dtype), "same", "e" * 64, right)
    for n, (converted, shift) in enumerate([(False, 0.0), (True, 0.0), (False, 1.0)]):
        assert sketch(as_ir(right, tmp_path / f"ir{n}", converted, shift))
        check(made, tmp_path / f"ir{n}", "same", "e" * 64, right)
    for folder in (wrong, as_ir(wrong, tmp_path / "wrong-ir", True)):
        with pytest.raises(ModelError, match=r"for big, not for other: its weights.*specport quantize"):
            check(made, folder, "other", "e" * 64, right)
    check(replace(made, target_sketch=()), wrong, "other", "e" * 64, right)  # an older bundle: not known
    check(made, wrong, "other", MADE.target_fingerprint, right)  # the very weights of the build


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    right = with_norm(tmp_path / "right", 1)
    made = replace(MADE, target_shape=bundle.shape(right), tokenizer=load_tokenizer(right).fingerprint)
    other = with_norm(tmp_path / "other", 1)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    stored = json.loads(text)
    vocab = stored["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match=r"for big, not for other: its tokenizer differs: token \d+"):
        check(made, other, "other", MADE.target_fingerprint, right)
    stored = json.loads(text)  # padding that only one of them has is no other tokenizer
    stored["added_tokens"].append({**stored["added_tokens"][0], "id": len(vocab), "content": "<|pad|>"})
    (other / "tokenizer.json").write_text(json.dumps(stored))
    assert load_tokenizer(other).fingerprint != made.tokenizer
    check(made, other, "other", MADE.target_fingerprint, right)


def test_what_is_no_model_has_no_sketch(tmp_path: Path) -> None:
    folder = with_norm(tmp_path / "a", 1)
    data = (folder / "model.safetensors").read_bytes()
    for damaged in (b"", data[:20], b"\xff" * 16, data[:-8]):
        (folder / "model.safetensors").write_bytes(damaged)
        assert len(sketch(folder)) in (0, 65)
    (folder / IR_XML).write_text("<net>")
    assert sketch(folder) == () and sketch(tmp_path) == ()
    assert same((), (1.0,)) and not same((1.0, 2.0), (1.0,))


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
        (["inspect", "."], "not a draft bundle"),
        (["export", ".", "--to", "xml", "--out", "y"], "unknown layout"),
    ],
)
def test_bad_input(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", *arguments]) == 2
    assert words in capsys.readouterr().err
