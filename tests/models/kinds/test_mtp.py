"""Weights for multi-token prediction in Hugging Face folders: found by names and shapes, and taken out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.errors import ModelError
from specport.models import tensors
from specport.models.kinds import mtp
from specport.models.kinds.recurrent import EPSILON
from specport.models.source import ModelFiles

WIDTH, LAYERS = 16, 3
SHAPES = {
    "self_attn.q_proj.weight": (16, 16),
    "mlp.up_proj.weight": (32, 16),
    "input_layernorm.weight": (16,),
}
FORMS = {
    "qwen": ("mtp.", "mtp.layers.0.", "fc", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"),
    "deepseek": (f"model.layers.{LAYERS}.",) * 2 + ("eh_proj", "enorm", "hnorm", "shared_head.norm"),
    "mimo": ("model.mtp_layers.0.",) * 2
    + ("input_proj", "token_layernorm", "hidden_layernorm", "final_layernorm"),
}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def model(form: str | None, **config: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return tensors and configuration of a model with a module of this form."""
    found = {"model.embed_tokens.weight": random(40, WIDTH), "lm_head.weight": random(41, WIDTH)}
    for number in range(LAYERS):
        found |= {f"model.layers.{number}.{name}": random(*shape) for name, shape in SHAPES.items()}
    found["model.norm.weight"] = random(WIDTH)
    if form:
        stem, layer, *names = FORMS[form]
        for name, shape in zip(names, ((WIDTH, 2 * WIDTH), (WIDTH,), (WIDTH,), (WIDTH,)), strict=True):
            found[f"{stem}{name}.weight"] = random(*shape)
        found |= {layer + name: random(*shape) + 1 for name, shape in SHAPES.items()}
    about = {"model_type": "qwen3", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": 40}
    return found, {**about, "rms_norm_eps": EPSILON, **config}


def save(folder: Path, stored: dict[str, Any], config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    names = sorted(stored)
    for number, part in enumerate((names[::2], names[1::2])):  # a module may be spread over files
        tensors.write(folder / f"part-{number}.safetensors", {name: stored[name] for name in part})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_found_and_taken_out(form: str, tmp_path: Path) -> None:
    stored, config = model(form, layer_types=["a", "b", "c"], num_nextn_predict_layers=1)
    found = mtp.find(save(tmp_path / "model", stored, config))
    assert found is not None and found.like == 0 and set(found.layer) == set(SHAPES)
    out = tmp_path / "module"
    out.mkdir()
    mtp.write(found, out)
    stem, layer, join, token, state, norm = FORMS[form]
    weight = stored[f"{stem}{join}.weight"]
    if form == "mimo":  # reads the state first
        weight = np.concatenate([weight[:, WIDTH:], weight[:, :WIDTH]], axis=1)
    read = mtp.read_join(out)
    assert np.array_equal(read.weight, weight) and read.epsilon == EPSILON
    assert np.array_equal(read.token_gain, stored[f"{stem}{token}.weight"])
    assert np.array_equal(read.state_gain, stored[f"{stem}{state}.weight"])
    decoder = tensors.header(out / "model.safetensors")
    for name in SHAPES:
        assert np.array_equal(decoder[f"model.layers.0.{name}"].array(), stored[layer + name])
    assert np.array_equal(decoder["model.norm.weight"].array(), stored[f"{stem}{norm}.weight"])
    assert decoder["lm_head.weight"].shape == (mtp.VOCAB, WIDTH)
    about = json.loads((out / "config.json").read_text())
    assert about["num_hidden_layers"] == 1 and about["layer_types"] == ["a"]
    assert about["vocab_size"] == mtp.VOCAB and "num_nextn_predict_layers" not in about


def test_norms_that_are_stored_less_one(tmp_path: Path) -> None:
    stored, config = model("qwen")
    nested = {"model_type": "qwen3_5", "text_config": {**config, "model_type": "qwen3_5_text"}}
    found = mtp.find(save(tmp_path, stored, nested))
    assert found is not None
    mtp.write(found, tmp_path)
    assert np.allclose(mtp.read_join(tmp_path).token_gain, 1 + stored["mtp.pre_fc_norm_embedding.weight"])
    assert np.array_equal(
        tensors.header(tmp_path / "model.safetensors")["model.norm.weight"].array(), stored["mtp.norm.weight"]
    )


def test_the_layer_that_is_alike_says_what_kind_it_is(tmp_path: Path) -> None:
    """Of a mixture of experts whose first layer is dense."""
    stored, config = model("deepseek", first_k_dense_replace=1)
    for number in range(1, LAYERS + 1):
        del stored[f"model.layers.{number}.mlp.up_proj.weight"]
        for expert in range(2):
            stored[f"model.layers.{number}.mlp.experts.{expert}.up_proj.weight"] = random(8, WIDTH)
    found = mtp.find(save(tmp_path, stored, config))
    assert found is not None and found.like == 1
    mtp.write(found, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["first_k_dense_replace"] == 0


def test_a_models_headers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, *model("qwen"))
    asked: list[Path] = []
    inner = mtp.find

    def counting(folder: Path) -> mtp.Module | None:
        asked.append(folder)
        return inner(folder)

    monkeypatch.setattr(mtp, "find", counting)
    files = ModelFiles(tmp_path, "m", "fp32", "m", "0", origin=tmp_path)
    assert files.own_module is not None and files.own_module is files.own_module and asked == [tmp_path]
    assert ModelFiles(tmp_path, "m", "fp32", "m", "0").own_module is None  # of another format


def test_a_model_without_a_module(tmp_path: Path) -> None:
    assert mtp.find(save(tmp_path, *model(None))) is None


def test_tables_of_its_own_must_be_the_models(tmp_path: Path) -> None:
    stored, config = model("deepseek")
    stem = FORMS["deepseek"][0]
    stored[f"{stem}embed_tokens.weight"] = stored["model.embed_tokens.weight"].copy()
    stored[f"{stem}shared_head.head.weight"] = stored["lm_head.weight"].copy()
    assert mtp.find(save(tmp_path, stored, config)) is not None
    stored[f"{stem}shared_head.head.weight"][-1, -1] += 1
    with pytest.raises(ModelError, match=r"shared_head\.head\.weight is not the model's"):
        mtp.find(save(tmp_path, stored, config))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mtp.other": "mtp.fc.weight"}, "they have mtp"),  # old name -> new name: the join is gone
        ({"mtp.norm2.weight": "mtp.norm.weight"}, "not all that belongs"),
        ({"mtp.layers.0.self_attn.z.weight": "mtp.layers.0.self_attn.q_proj.weight"}, "like none"),
    ],
)
def test_other_forms_are_refused_in_one_line(change: dict[str, str], why: str, tmp_path: Path) -> None:
    stored, config = model("qwen")
    for new, old in change.items():
        stored[new] = stored.pop(old)
    with pytest.raises(ModelError, match=why) as caught:
        mtp.find(save(tmp_path, stored, config))
    assert "\n" not in str(caught.value) and "form that is not known" in str(caught.value)


@pytest.mark.parametrize("name", ["mtp.fc.weight", "mtp.norm.weight", "mtp.layers.0.input_layernorm.weight"])
def test_other_shapes_and_types_are_refused(name: str, tmp_path: Path) -> None:
    stored, config = model("qwen")
    kept = stored[name]
    stored[name] = kept[..., 1:]
    with pytest.raises(ModelError, match=r"16 wide|like none"):
        mtp.find(save(tmp_path, stored, config))
    stored[name] = kept.astype(np.int8)
    with pytest.raises(ModelError, match="stored as I8"):
        mtp.find(save(tmp_path, stored, config))


def test_damaged_files(tmp_path: Path) -> None:
    stored, config = model("qwen")
    folder = save(tmp_path / "model", stored, config)
    found = mtp.find(folder)
    assert found is not None
    mtp.write(found, tmp_path)
    whole = (tmp_path / mtp.JOIN).read_bytes()
    bad = np.frombuffer(whole, np.uint8).copy()
    bad[-4:] = 255  # not a number
    for data in (whole[:40], whole[:-4], bad.tobytes(), b"", b"\xff" * 64):
        (tmp_path / mtp.JOIN).write_bytes(data)
        with pytest.raises(ModelError, match="cannot be read"):
            mtp.read_join(tmp_path)
    path = folder / "part-0.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ModelError, match="cannot be read"):
        mtp.find(folder)


def test_values_of_16_bits(tmp_path: Path) -> None:
    values = random(4, 6)
    tensors.write(tmp_path / "a.safetensors", {"half": values.astype(np.float16), "wide": values})
    found = tensors.in_folder(tmp_path)
    assert np.array_equal(found["half"].array(), values.astype(np.float16))
    cut = (values.view(np.uint32) >> 16).astype(np.uint16)
    (tmp_path / "b").write_bytes(cut.tobytes())
    stored = tensors.Stored(tmp_path / "b", "BF16", (4, 6), 0, cut.nbytes)
    assert np.array_equal(stored.array(), (cut.astype(np.uint32) << 16).view(np.float32))
    tensors.write(tmp_path / "c.safetensors", {"copy": stored})
    assert np.array_equal(tensors.header(tmp_path / "c.safetensors")["copy"].array(), stored.array())


def test_a_type_of_a_later_day_hides_no_other_tensor(tmp_path: Path) -> None:
    entries = {
        "packed": {"dtype": "F4", "shape": [4, 2], "data_offsets": [0, 4]},
        "wide": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    }
    head = json.dumps(entries).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(12))
    found = tensors.header(path)
    assert found["packed"].size == 4 and found["wide"].array().tolist() == [0.0, 0.0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="wide lies outside"):
        tensors.header(path)
