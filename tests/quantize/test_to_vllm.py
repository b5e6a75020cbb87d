"""Exports for vLLM: each kind of draft becomes what vLLM's configuration takes, or is refused in one line."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("openvino")

from specport.quantize.to_vllm import Exported, to_vllm
from specport.quantize.train.layerskip import about
from support.tiny import tiny_head, tiny_models, tiny_mtp

from specport.cli import main
from specport.errors import InvalidInput, ModelError
from specport.models import bundle
from specport.models.bundle import Bundle
from specport.models.kinds.parallel import Parallel
from specport.models.weight_sketch import sketch
from specport.text.tokenizer import load_tokenizer

VOCAB = len(tiny_models.vocabulary())
DEPTH, MASK = 3, VOCAB - 1


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "target"
    tiny_models.save_hf(folder, "llama", 3)
    return folder


def draft_of(target: Path, folder: Path, vocab: int = VOCAB, **changes: Any) -> Path:
    """Write a draft bundle of Hugging Face weights for `target`."""
    tiny_models.save_hf(folder, "llama", 1, vocab_size=vocab, pard_token=MASK)
    facts: dict[str, Any] = {
        "target": "target", "target_shape": bundle.shape(target), "target_fingerprint": "none",
        "target_sketch": sketch(target), "tokenizer": load_tokenizer(target).fingerprint, "source": "small",
        "precision": "fp16", "layers": (0,), "num_layers": 3,
        "measured": {"acceptance_by_depth": (0.8, 0.5, 0.34, 0.2)},
    }  # fmt: skip
    bundle.write(folder, Bundle(**{**facts, **changes}))
    return folder


def config_in(out: Path) -> dict[str, Any]:
    found = json.loads((out / "vllm.json").read_text())
    assert isinstance(found, dict)
    return found


def test_a_draft_model(target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft, out = draft_of(target, tmp_path / "made"), tmp_path / "out"
    (draft / "modeling.py").write_text("raise SystemExit")
    words = ["quantize", "export", str(draft), "--to", "vllm", "--target", str(target), "--out", str(out)]
    assert main(words) == 0
    # Three of the four measured depths are reached in a third of the rounds.
    expected = {"method": "draft_model", "model": "./draft", "num_speculative_tokens": 3}
    assert config_in(out) == expected
    command = capsys.readouterr().err.strip().splitlines()[-1].strip()
    assert command in (out / "README.md").read_text().replace("vllm serve", f"cd {out} && vllm serve")
    parsed = shlex.split(command)
    assert parsed[:5] == ["cd", str(out), "&&", "vllm", "serve"] and parsed[5] == str(target)
    assert parsed[6] == "--speculative-config" and json.loads(parsed[7]) == expected
    assert logits(out / "draft") == pytest.approx(logits(draft), abs=0)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "draft", "vllm.json"]
    assert not [*(out / "draft").glob("*.py")] and not [*(out / "draft").glob("specport*")]


def logits(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        return model(torch.tensor([[0, 7, 90, 41]])).logits[0].numpy()


def test_a_model_that_is_no_bundle_drafts_too(target: Path, tmp_path: Path) -> None:
    tiny_models.save_hf(tmp_path / "small", "llama", 1, vocab_size=VOCAB + 5)
    to_vllm(str(tmp_path / "small"), tmp_path / "out", target=str(target), tokens=5)
    found = config_in(tmp_path / "out")
    assert found["num_speculative_tokens"] == 5 and found["use_heterogeneous_vocab"]


def test_a_parallel_draft(target: Path, tmp_path: Path) -> None:
    parallel = Parallel(DEPTH, MASK, (1.0,) * DEPTH)
    draft = draft_of(target, tmp_path / "made", parallel=parallel)
    made = to_vllm(str(draft), tmp_path / "out", target=str(target))
    assert made.speculative == {
        "method": "draft_model", "model": "./draft", "num_speculative_tokens": DEPTH,
        "parallel_drafting": True,
    }  # fmt: skip
    assert json.loads((made.folder / "draft" / "config.json").read_text())["pard_token"] == MASK
    with pytest.raises(InvalidInput, match=f"drafts {DEPTH} tokens a pass"):
        to_vllm(str(draft), tmp_path / "more", target=str(target), tokens=DEPTH + 1)
    appended = replace(parallel, mask_token_id=VOCAB)
    wider = draft_of(target, tmp_path / "wider", VOCAB + 1, parallel=appended)
    with pytest.raises(ModelError, match=r"vocabularies of one size.*appended for MASK"):
        to_vllm(str(wider), tmp_path / "other", target=str(target))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "out", "wider"]


@pytest.mark.parametrize(
    ("draft", "tokens", "expected"),
    [
        ("suffix", None, {"method": "suffix", "num_speculative_tokens": 32}),
        (
            "ngram", 7,
            {"method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_min": 2, "prompt_lookup_max": 4},
        ),
    ],
)  # fmt: skip
def test_drafts_without_weights(
    draft: str, tokens: int | None, expected: dict[str, Any], target: Path, tmp_path: Path
) -> None:
    made = to_vllm(str(target), tmp_path / "out", draft=draft, tokens=tokens)
    assert made.speculative == config_in(made.folder) == expected and made.model == str(target)
    assert bool(made.notes) == (draft == "suffix")


def test_the_command_names_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    def words(model: str) -> list[str]:
        return shlex.split(Exported(tmp_path, model, {}).command)[2:-2]

    assert words("org/name") == ["org/name"] and words("./target") == ["./target"]
    assert words("org/name@v1") == ["org/name", "--revision", "v1"]
    assert words(str(tmp_path / "name@v1")) == [str(tmp_path / "name@v1")]


def test_multi_token_prediction(tmp_path: Path) -> None:
    tiny_mtp.save(tmp_path / "qwen", "qwen", "qwen3_5_text")
    made = to_vllm(str(tmp_path / "qwen"), tmp_path / "out")
    assert made.speculative == {"method": "mtp", "num_speculative_tokens": 1}
    tiny_mtp.save(tmp_path / "llama", "deepseek", "llama")
    with pytest.raises(ModelError, match="no multi-token prediction for models of the kind llama"):
        to_vllm(str(tmp_path / "llama"), tmp_path / "other")


def test_speculators_load_the_weights_for_multi_token_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `--to vllm` names is read by vLLM's own library of drafts, and computes what we compute."""
    monkeypatch.setitem(sys.modules, "torchvision", None)  # where its build is not torch's
    mtp = pytest.importorskip("speculators.models.mtp", exc_type=ImportError)
    converter = pytest.importorskip("speculators.convert.mtp.converter", exc_type=ImportError)
    import torch
    from safetensors.torch import load_file

    changes = {"layer_types": ["full_attention"] * 2, "tie_word_embeddings": True}
    module = tiny_mtp.save(tmp_path / "qwen", "qwen", "qwen3_5_text", **changes)
    made = to_vllm(str(tmp_path / "qwen"), tmp_path / "out")
    converter.MTPConverter().convert(made.model, tmp_path / "head", made.model, num_speculative_steps=1)
    loaded = mtp.MTPDraftModel.from_pretrained(str(tmp_path / "head")).float().eval()
    config = json.loads((tmp_path / "qwen" / "config.json").read_text())
    stored = load_file(tmp_path / "qwen" / "model.safetensors")
    table = next(tensor.numpy() for name, tensor in stored.items() if name.endswith("embed_tokens.weight"))
    reference = tiny_mtp.Reference(module, table, table, config)
    tokens = [3, 90, 41, 7, 200, 12, 5]
    states = np.random.default_rng(0).normal(size=(len(tokens), config["hidden_size"])).astype(np.float32)
    count = len(tokens)
    places = torch.arange(count)[None]
    with torch.no_grad():  # as in the model's `forward`, whose mask another transformers makes
        hidden = torch.from_numpy(states)[None]
        entered = loaded.mtp_layers[0](
            hidden_states=hidden,
            token_embeddings=loaded.embed_tokens(torch.tensor([tokens])),
            attention_mask=torch.full((1, 1, count, count), -torch.inf).triu(1),
            position_ids=places,
            position_embeddings=loaded.rotary_emb(hidden, places.expand(3, 1, -1)),
        )
        found = loaded.lm_head(entered)[0].numpy()
    _, expected = reference(states, tokens)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_vllm_has_no_equal_of_is_refused(target: Path, tmp_path: Path) -> None:
    head = tiny_head.save_head(tmp_path / "head", target)
    with pytest.raises(ModelError, match=r"no equal of .*recurrent head.*--draft ngram"):
        to_vllm(str(head), tmp_path / "out", target=str(target))
    early = tmp_path / "early"
    tiny_models.save_hf(early, "llama", 2)
    (early / about.NAME).write_text("{}")
    with pytest.raises(ModelError, match=r"no early exit.*--draft ngram"):
        to_vllm(str(early), tmp_path / "out")
    with pytest.raises(ModelError, match="has no draft"):
        to_vllm(str(target), tmp_path / "out")
    with pytest.raises(ModelError, match="no weights for multi-token prediction"):
        to_vllm(str(target), tmp_path / "out", draft="mtp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["early", "head"]


def test_requests_that_make_no_sense(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft, out = draft_of(target, tmp_path / "made"), tmp_path / "out"
    other = tmp_path / "other"
    tiny_models.save_hf(other, "llama", 2)
    with pytest.raises(InvalidInput, match=r"is for target.*--target MODEL"):
        to_vllm(str(draft), out)
    with pytest.raises(ModelError, match=r"built for target, not for .*other"):
        to_vllm(str(draft), out, target=str(other))
    for wrong, says in (
        (["--draft", "ngram"], "are two drafts"),
        (["--target", str(target), "--tokens", "0"], "--tokens is 0"),
        (["--draft", "eagle"], "unknown draft 'eagle'"),
    ):
        assert main(["quantize", "export", str(draft), "--to", "vllm", "--out", str(out), *wrong]) == 2
        assert says in capsys.readouterr().err
    for layout in ("hf", "vllm"):
        for folders in (("a\0b", str(out)), (str(draft), "a\0b")):
            assert main(["quantize", "export", folders[0], "--to", layout, "--out", folders[1]]) == 2
            assert "cannot use the path" in capsys.readouterr().err
    assert main(["quantize", "export", str(draft), "--to", "hf", "--tokens", "2", "--out", str(out)]) == 2
    assert "--tokens is for --to vllm" in capsys.readouterr().err
    assert not out.exists()
