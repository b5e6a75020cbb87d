"""MTP heads from the command line to drafting, on both runtimes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specport.errors import InvalidInput, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from specport.quantize.evaluate import quick_costs  # noqa: E402
from specport.quantize.mtp import build as building  # noqa: E402
from specport.quantize.text import passages, prompts, turns, writer  # noqa: E402
from support.laws.runtime_law import check_sampled_texts  # noqa: E402
from support.processes.own_cache import own_cache  # noqa: E402, F401
from support.tiny import tiny_models  # noqa: E402

import specport  # noqa: E402
from specport.cli import main  # noqa: E402
from specport.core.engine import Engine  # noqa: E402
from specport.core.policies.first_proposal import FirstProposal  # noqa: E402
from specport.core.policies.length_rules import Fixed  # noqa: E402
from specport.core.sampling.params import SamplingParams  # noqa: E402
from specport.drafters.model.mtp import MtpDrafter  # noqa: E402
from specport.models import bundle  # noqa: E402

BOTH = {"xeon": "int8", "torch-cpu": "fp32"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> tuple[Path, Path]:  # noqa: F811
    """Return a tiny target and a head that the command made for it."""
    root = tmp_path_factory.mktemp("built")
    asked = ("Summarize: a b c", "What is d?") * 2
    model = tiny_models.save_hf(root / "tiny", "llama", 2, tie_word_embeddings=False)
    with torch.no_grad():  # the next token depends on the last one most, so that little text teaches enough
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(0.003)
    model.save_pretrained(root / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "_openings", lambda rng: [turns.Turn(text) for text in asked])
        patch.setattr(passages, "turn", lambda rng: asked[0])
        patch.setattr(turns, "SHARD", 4)
        patch.setattr(writer, "ANSWER_TOKENS", 16)
        patch.setattr(quick_costs, "BUDGET_S", 0.5)
        patch.setattr(prompts, "HELD_OUT", ("What is d?", "When was it?"))
        command = [
            "quantize", "mtp", "--target", str(root / "tiny"), "--precision", "int8", "--distil", "120",
            "--depth", "3", "--head-tokens", "100", "--epochs", "20", "--learning-rate", "1e-3",
            "--threads", "1", "--quiet",
        ]  # fmt: skip
        assert main([*command, "--loss", "kl", "--out", str(root / "first")]) == 0
        assert main([*command, "--from", str(root / "first"), "--out", str(root / "head")]) == 0
        assert main([*command, "--out", str(root / "head")]) == 2  # it is there already
    return root / "tiny", root / "head"


def test_a_head_says_what_it_is(built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, out = built
    made = bundle.read(out, thorough=True)
    assert made.mtp is not None and (made.mtp.depth, made.mtp.loss) == (3, "e2e-tv")
    assert made.head_tokens is not None and 100 <= len(made.head_tokens) <= 104
    first = bundle.read(out.parent / "first")
    assert first.head == made.head and made.provenance["started_from"]
    assert sum(first.distilled["survival"]) > sum(first.distilled["survival_before"])
    assert made.measured["same_text"] == 2 and made.measured["cost"] > 0
    assert not out.with_name("head.partial").exists()
    assert main(["quantize", "inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "multi-token prediction" in shown and "by e2e-tv on" in shown and "survival  " in shown
    assert main(["quantize", "inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mtp"] == {"depth": 3, "loss": "e2e-tv"}


@pytest.mark.parametrize("device", BOTH)
def test_it_drafts_on_both_runtimes(device: str, built: tuple[Path, Path]) -> None:
    target, out = map(str, built)
    options: dict[str, Any] = {"device": device, "precision": BOTH[device]}
    plain = specport.load(target, draft="none", **options).generate("What is d?", max_new_tokens=24)
    for draft in (f"ngram|{out}", out):
        pipeline = specport.load(target, draft=draft, policy="fixed", **options)
        found = pipeline.generate("What is d?", max_new_tokens=24)
        assert found.token_ids == plain.token_ids
    assert found.metrics.num_accepted_tokens > 0
    assert pipeline._engine.model.mtp is not None
    assert pipeline._engine.model.mtp.vocab_size < pipeline._engine.model.vocab_size


@pytest.mark.parametrize("device", BOTH)
def test_sampled_texts_keep_the_law(device: str, built: tuple[Path, Path]) -> None:
    """Chi-square of 600 seeded texts of three tokens, with a head whose vocabulary is cut."""
    target, out = map(str, built)
    pipeline = specport.load(target, draft=out, device=device, precision=BOTH[device])
    model, kept = pipeline._engine.model, bundle.read(built[1]).head_tokens
    drafter = MtpDrafter(model.mtp, model.vocab_size, kept)  # type: ignore[arg-type]  # it has one
    engine = Engine(model, FirstProposal([drafter], lambda: Fixed(3), tree=False))
    prompt = pipeline.tokenizer.encode("What is d? hello")
    texts = check_sampled_texts(engine, prompt, SamplingParams(temperature=1.3))
    assert sum(text.num_accepted_tokens for text in texts) > 100


def test_it_is_the_default_where_it_pays(built: tuple[Path, Path]) -> None:
    target, out = built
    pipeline = specport.load(str(target), precision="int8", device="xeon")
    fingerprint = bundle.read(out).target_fingerprint
    before = bundle.registered(fingerprint)
    bundle.register(out, fingerprint)
    pipeline = specport.load(str(target), precision="int8", device="xeon")
    assert pipeline._engine.model.mtp is not None
    if before is not None:
        bundle.register(before, fingerprint)


def test_what_cannot_be_used_is_explained(built: tuple[Path, Path], tmp_path: Path) -> None:
    target, out = built
    common: dict[str, Any] = {"precision": "int8", "device": "xeon"}
    with pytest.raises(ModelError, match="draft head, not a model"):
        specport.load(str(out), draft="none", **common)
    with pytest.raises(InvalidInput, match="two MTP heads"):
        specport.load(str(target), draft=f"{out}|{out.parent / 'first'}", **common)
    with pytest.raises(InvalidInput, match="two MTP heads"):
        specport.load(str(target), draft=f"{out}|mtp", **common)
    with pytest.raises(InvalidInput, match="head on hidden states"):
        specport.load(str(target), draft=f"graft({out})", **common)
    other = shutil.copytree(out, tmp_path / "other")
    bundle.write(other, replace(bundle.read(other), target_shape="another"))
    with pytest.raises(ModelError, match="built for tiny"):
        specport.load(str(target), draft=str(other), **common)
    with pytest.raises(ModelError, match="no weights for multi-token"):
        specport.load(str(target), draft="mtp", **common)
    with pytest.raises(ModelError, match="no MTP head"):
        building.build(str(target), tmp_path / "new", building.Request(start=target), **common)


@pytest.mark.parametrize("device", ["core-ultra-npu-emulated", "torch-cpu"])
def test_a_device_that_builds_no_heads_is_refused_before_anything_slow(device: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="paged path"):
        building.build("nowhere", tmp_path / "new", building.Request(), device=device)


def test_a_head_of_another_kind_of_target_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    tiny_models.save_hf(tmp_path / "tiny", "gemma3_text")
    with pytest.raises(ModelError, match="kind gemma3_text"):
        building.build(str(tmp_path / "tiny"), tmp_path / "new", building.Request(), device="xeon")
