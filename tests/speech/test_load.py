"""What speech is loaded from: folders of two formats; what is no speech model is refused."""

from __future__ import annotations

import gc
import json
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from specport.quantize.convert.whisper import source, vocabulary
from support.tiny import tiny_whisper
from transformers import WhisperForConditionalGeneration

from specport import load as load_text
from specport.errors import InvalidInput, ModelError
from specport.models.kinds.whisper import find_encoder_key
from specport.speech.ports import Window
from specport.speech.whisper.load import load
from specport.text.tokenizer import load_tokenizer


@pytest.mark.parametrize("quantized", [False, True])
def test_ctranslate2_weights_are_read(models, tmp_path: Path, quantized: bool) -> None:
    folder = tiny_whisper.write_ctranslate2(models.target, tmp_path, quantized=quantized)
    ours, theirs = source.read(folder), source.read(models.target)
    assert ours.shape == theirs.shape and {*ours.weights} == {*theirs.weights}
    for name, weight in theirs.weights.items():
        atol = np.abs(weight).max() / 127 if quantized else 0
        np.testing.assert_allclose(ours.weights[name], weight, atol=atol)
    for name in ("suppress_tokens", "begin_suppress_tokens", "alignment_heads"):
        assert ours.generation[name] == theirs.generation[name]


def test_ctranslate2_folder_gives_the_same_ids(models, tmp_path: Path, device: str) -> None:
    folder = tiny_whisper.write_ctranslate2(models.target, tmp_path / "ct2")
    (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "is_multilingual": True})
    )
    found = []
    for name in (models.target, folder):
        model = load(str(name), draft="none", device=device, precision="fp32")
        prompt = (model.tokens.sot, model.tokens.no_timestamps)
        found.append(model.decode([Window(tiny_whisper.features(), prompt, False, max_new_tokens=12)])[0].ids)
        held = weakref.ref(model.engine.model)
        model.close()
        gc.collect()
        assert held() is None
        with pytest.raises(InvalidInput, match="closed"):
            model.align(tiny_whisper.features(), prompt, [])
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["vocabulary.json", "vocabulary.txt"])
def test_a_tokenizer_is_made_from_a_list_of_tokens(models, tmp_path: Path, name: str) -> None:
    theirs = load_tokenizer(models.target)
    known = json.loads((models.target / "tokenizer.json").read_text())
    tokens = [*known["model"]["vocab"], *(added["content"] for added in known["added_tokens"])]
    (tmp_path / name).write_text(
        json.dumps(tokens) if name.endswith("json") else "\n".join(tokens) + "\n", "utf-8"
    )
    vocabulary.write(tmp_path, tmp_path)
    ours = load_tokenizer(tmp_path)
    text = "another senseless text, noted as it is"
    assert ours.encode_part(text) == theirs.encode_part(text) and ours.mismatch(theirs) is None
    foreign = [*tokens[:256], "é猫", *tokens[256:]]  # a token that no bytes give
    (tmp_path / name).write_text(
        json.dumps(foreign) if name.endswith("json") else "\n".join(foreign) + "\n", "utf-8"
    )
    vocabulary.write(tmp_path, tmp_path)
    for wrong in ("", "[]", '["a", 3]', "a\nb\n"):
        (tmp_path / name).write_text(wrong)
        with pytest.raises(ModelError):
            vocabulary.write(tmp_path, tmp_path)


def _damaged(data: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "another model": tiny_whisper.packed({"a": np.zeros(2, np.float32)}, "TransformerSpec"),
        "no weights": tiny_whisper.packed({"a": np.zeros(2, np.float32)}),
        "truncated": data[: len(data) // 2],
        "a huge count": data[:22] + b"\xff\xff\xff\x7f" + data[26:],
        "a huge array": data[: data.index(b"weight\0") + 8]
        + b"\xff" * 40
        + data[data.index(b"weight\0") + 48 :],
        "old version": b"\x01" + data[1:],
        "scales that would make a huge array": tiny_whisper.packed(
            {"a": np.ones((1, 1000), np.int8), "a_scale": np.ones(1_000_000, np.float32)}
        ),
        "too many axes": tiny_whisper.packed({"a": np.ones((1,) * 32, np.float32)}).replace(
            bytes([32]) + b"\1\0\0\0" * 32, bytes([99]) + b"\1\0\0\0" * 99
        ),
    }


def test_damaged_ctranslate2_files_are_refused(models, tmp_path: Path) -> None:
    folder = tiny_whisper.write_ctranslate2(models.target, tmp_path)
    data = (folder / "model.bin").read_bytes()
    for name, damaged in _damaged(data).items():
        (folder / "model.bin").write_bytes(damaged)
        with pytest.raises(ModelError) as error:
            source.read(folder)
        assert "\n" not in str(error.value), name


def test_incomplete_folders_are_refused(models, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((models.target / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in (
        {"d_model": 64},
        {"decoder_layers": 3},
        {"encoder_layers": 100_000},
        {"vocab_size": "many"},
        {"activation_function": "relu"},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(ModelError):
            source.read(tmp_path)


def test_other_models_are_refused(models, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(ModelError, match=r"no Whisper model \(t5\)"):
        load(str(tmp_path))
    with pytest.raises(ModelError, match="speech model"):
        load_text(str(models.target))
    with pytest.raises(InvalidInput, match="no speech model"):
        load("default")
    for draft in ("early-exit:1", "mtp"):
        with pytest.raises(InvalidInput, match="no drafter"):
            load(str(models.target), draft=draft)
    with pytest.raises(ModelError, match="another tokenizer"):
        load(str(models.target), draft=str(models.english), precision="fp32", device="torch-cpu")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_model_of_the_form_of_large_v3_turbo(tmp_path: Path, device: str, precision: str) -> None:
    """128 bins of features, and more layers that hear than layers that write."""
    if device == "torch-cpu" and precision == "int8":
        pytest.skip("torch has no INT8")
    mels = 128
    target = tiny_whisper.make(tmp_path / "turbo", mels=mels, encoder_layers=4, layers=2)
    draft = tiny_whisper.make(
        tmp_path / "draft", seed=1, mels=mels, encoder_layers=4, encoder_of=target, layers=1
    )
    heard = tiny_whisper.features(0, mels)
    found = []
    for name in ("none", str(draft)):
        model = load(
            str(target), draft=name, device=device, precision=precision, policy="fixed", num_draft_tokens=3
        )
        prompt = (model.tokens.sot, model.tokens.no_timestamps)
        found.append(model.decode([Window(heard, prompt, False, max_new_tokens=16)])[0])
        model.close()
    plain, drafted = found
    assert drafted.ids == plain.ids and len(plain.ids) == 16 and drafted.drafted > 0
    if precision == "fp32":
        theirs = WhisperForConditionalGeneration.from_pretrained(target).eval()
        ids = torch.tensor([[*prompt, *plain.ids]])
        with torch.no_grad():
            logits = theirs(torch.from_numpy(heard)[None], decoder_input_ids=ids).logits[0, 1:-1].numpy()
        rules = json.loads((target / "generation_config.json").read_text())
        logits[:, [*rules["suppress_tokens"], model.tokens.no_timestamps]] = -np.inf
        logits[:, model.tokens.timestamp_begin :] = -np.inf
        logits[0, rules["begin_suppress_tokens"]] = -np.inf
        assert logits.argmax(axis=1).tolist() == list(plain.ids)


def test_a_draft_with_the_targets_encoder_takes_its_output(models, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [find_encoder_key(f) for f in (models.target, models.same_encoder, models.other_encoder)]
    assert keys[0] == keys[1] != keys[2]
    pytest.importorskip("openvino")
    from specport.backends.openvino.whisper import WhisperEncoder

    used: list[WhisperEncoder] = []
    encode = WhisperEncoder.__call__
    monkeypatch.setattr(WhisperEncoder, "__call__", lambda self, x: (used.append(self), encode(self, x))[1])
    model = load(
        str(models.target), draft=str(models.same_encoder), device="xeon", precision="fp32",
        draft_precision="fp32",
    )  # fmt: skip
    prompt = (model.tokens.sot, model.tokens.no_timestamps)
    window = Window(tiny_whisper.features(), prompt, False, max_new_tokens=12)
    model.tokens.no_speech = None  # then the draft might be the first to hear the window
    assert model.decode([window])[0].drafted > 0 and len(used) == 1
    model.close()


def test_a_real_model_writes_what_transformers_does(device: str) -> None:
    folder = Path(os.environ.get("SPECPORT_TEST_MODELS") or "", "whisper-tiny.en")
    if not (folder / "model.safetensors").is_file():
        pytest.skip("SPECPORT_TEST_MODELS names no folder with whisper-tiny.en")
    import torch
    from transformers import WhisperForConditionalGeneration

    features = np.random.default_rng(0).normal(size=(80, 3000)).astype(np.float32) * 0.3
    model = load(str(folder), draft="none", device=device, precision="fp32")
    prompt = (model.tokens.sot, model.tokens.no_timestamps)
    found = model.decode([Window(features, prompt, False, max_new_tokens=20)])[0].ids
    theirs = WhisperForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        ids = theirs.generate(
            torch.from_numpy(features)[None],
            decoder_input_ids=torch.tensor([prompt]),
            suppress_tokens=[*model.tokens.suppressed],
            begin_suppress_tokens=[*model.tokens.suppressed_first],
            max_new_tokens=20,
        )[0].tolist()
    said = ids[len(prompt) :] if ids[: len(prompt)] == [*prompt] else ids
    assert [*found] == [i for i in said if i != model.tokens.eot]
    model.close()
