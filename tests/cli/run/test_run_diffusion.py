"""`specport run` with diffusion models on torch: chosen by the folder's kind, alone and with a draft."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.quantize.convert import diffusion
from support.tiny import tiny_models

from specport.cli import main
from specport.diffusion.load import about
from specport.diffusion.options import DiffusionOptions
from specport.errors import ModelError
from specport.models.kinds.diffusion import DiffusionFacts
from specport.runtime.loading import Loader

MASK = 5
DEVICE = ("--device", "torch-cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A target of 3 layers, a draft of its first 2, one with another mask, and an autoregressive model."""
    root = tmp_path_factory.mktemp("diffusion")
    target = tiny_models.save_hf(root / "plain", "llama", 3)
    found = {"plain": str(root / "plain")}
    for name, layers, mask in (("target", 3, MASK), ("draft", 2, MASK), ("other", 2, MASK + 1)):
        target.model.layers = target.model.layers[:layers]
        target.config.num_hidden_layers = layers
        target.save_pretrained(root / name)
        tiny_models.save_tokenizer(root / name)
        diffusion.mark(root / name, DiffusionFacts(mask, 4))
        found[name] = str(root / name)
    return found


def test_alone(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["run", "Hello", "--model", folders["target"], *DEVICE, "--max-new-tokens", "18"]
    assert main([*ask, "--ignore-eos", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["token_ids"]) == 18 and MASK not in report["token_ids"]
    assert report["settings"]["device"] == "torch-cpu" and report["settings"]["draft"] == "none"
    assert main([*ask, "--ignore-eos", "--json", "--denoising-steps", "1"]) == 0
    fewer = json.loads(capsys.readouterr().out)
    assert fewer["metrics"]["num_steps"] < report["metrics"]["num_steps"] / 2


def test_with_a_draft(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["run", "Hello", "--model", folders["target"], *DEVICE, "--max-new-tokens", "18"]
    texts = []
    for draft in ("draft", "target"):
        assert main([*ask, "--ignore-eos", "--draft", folders[draft], "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        texts.append(report["token_ids"])
        assert report["settings"]["draft"] == draft and report["metrics"]["num_drafts"] > 0
        assert "is that of the model alone under the layout grouped" in report["notes"][-1]
    assert texts[0] == texts[1]
    assert not report["settings"]["lossy"] and not report["metrics"]["lossy"]
    published = [
        *ask,
        "--draft",
        folders["draft"],
        "--reveal-order",
        "confidence",
        "--verify-layout",
        "released",
    ]
    assert main([*published, "--json", "--explain"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["lossy"] == report["metrics"]["lossy"] == "SimSD released"
    assert "second tokens" not in json.dumps(report["explain"])


def test_what_is_lossy_is_said() -> None:
    assert "lossy: with the layout released" in about(DiffusionOptions(layout="released", order="position"))
    assert "lossy: in the order of confidence" in about(DiffusionOptions(order="confidence"))
    assert "lossy" not in about(DiffusionOptions(order="position", layout="grouped"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--draft", "ngram"], "its draft is a smaller diffusion model"),
        (["--draft", "{draft}|suffix"], "its draft is a smaller diffusion model"),
        (["--draft", "{plain}"], "is no diffusion model"),
        (["--draft", "{other}"], "its mask is token 6, not 5"),
        (["--policy", "fixed"], "policy does not apply to a diffusion model"),
        (["--fast"], "exact does not apply"),
        (["--branches", "2,1"], "branches does not apply"),
        (["--history", "h"], "history does not apply"),
        (["--prefix-cache", "p"], "prefix_cache does not apply"),
        (["--prefix-cache-size", "1GB"], "prefix_cache_size does not apply"),
        (["--draft", "{draft}", "--block-length", "100"], "blocks of 100 tokens make steps of 5149 rows"),
        (["--repetition-penalty", "1.3"], "a diffusion model cannot follow penalties"),
        (["--json-object"], "a diffusion model cannot follow a grammar"),
        (["--block-length", "0"], "block_length is 0"),
    ],
)
def test_what_does_not_apply_is_refused(
    options: list[str], words: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option.format(**folders) for option in options]
    assert main(["run", "Hello", "--model", folders["target"], *DEVICE, *given]) == 2
    out, err = capsys.readouterr()
    assert words in err and not out and "Traceback" not in err


def test_options_of_diffusion_for_another_model(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "Hello", "--model", folders["plain"], *DEVICE, "--denoising-steps", "2"]) == 2
    assert "options of diffusion models do not apply" in capsys.readouterr().err


def test_it_is_no_draft_of_another_model(folders: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="draft is a diffusion model, which fills in masks"):
        Loader.on("torch-cpu").files(folders["draft"], "fp32")
