"""A draft cut from the default model: built, inspected, used by specport and by others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from specport.quantize import build
from specport.quantize.evaluate import pair, quick_costs
from specport.quantize.prune.probe import Probe
from specport.quantize.text import prompts

import specport
from specport.calibration.target_text import Text
from specport.cli import main
from specport.models import bundle

pytestmark = [pytest.mark.real_model, pytest.mark.filterwarnings("ignore")]
PROMPTS = ("Name three rivers.", "Repeat this sentence twice: The quick brown fox jumps over the lazy dog.")


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draft") / "draft"
    wanted = ["--layers", "24", "--by", "block", "--head-tokens", "16384", "--draft-precision", "int8"]
    with pytest.MonkeyPatch.context() as patch:  # the user's own `--draft auto` is not ours to change
        patch.setattr(bundle, "register", lambda *_: None)
        patch.setattr(build, "CHOOSING_TOKENS", 24)
        patch.setattr(quick_costs, "BUDGET_S", 0.5)
        patch.setattr(prompts, "CHOOSING", prompts.CHOOSING[:4])
        patch.setattr(prompts, "HELD_OUT", prompts.HELD_OUT[:4])
        patch.setattr(pair, "NUM_TOKENS", 24)
        assert main(["quantize", "--device", "xeon", *wanted, "--quiet", "--out", str(folder)]) == 0
    return folder


def test_text_stays_the_same_with_a_draft_cut_from_the_target(draft: Path) -> None:
    made = bundle.read(draft, thorough=True)
    assert len(made.layers) == 24 and made.num_layers == 30
    gone = sorted({*range(30)} - {*made.layers})
    assert gone == [*range(gone[0], gone[0] + 6)]
    assert made.head_tokens is not None and 16_384 <= len(made.head_tokens) < 17_000
    assert made.measured["same_text"] == made.measured["prompts"]
    assert made.measured["cost"] > 0  # what it is worth is for benchmarks
    plain = specport.load(device="xeon", draft="none")
    drafted = specport.load(device="xeon", draft=str(draft), policy="fixed", num_draft_tokens=4)
    for prompt in PROMPTS:
        want = plain.generate(prompt, max_new_tokens=32)
        got = drafted.generate(prompt, max_new_tokens=32)
        assert got.token_ids == want.token_ids
        assert got.metrics.num_accepted_tokens > 0


def test_transformers_reads_what_is_exported(draft: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "hf"
    assert main(["quantize", "export", str(draft), "--to", "hf", "--out", str(out), "--quiet"]) == 0
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert len(model.model.layers) == 24
    ids = tokenizer("The capital of France is Paris, and the capital of Spain is Madrid.").input_ids
    with torch.no_grad():
        chosen = model(torch.tensor([ids[:-1]])).logits[0].argmax(dim=-1).numpy()
    here = Probe(draft, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).choices(Text((ids[0],), tuple(ids[1:])))
    assert (chosen == here).mean() > 0.8


def test_inspect_as_json(draft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "inspect", str(draft), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_layers"] == 30
