"""A parallel draft from end to end on a tiny model: built, inspected, used, trained further, exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from specport.quantize.build import build
from specport.quantize.evaluate import quick_costs
from specport.quantize.request import Request
from specport.quantize.text import passages, prompts, turns, writer
from support.tiny import tiny_models

import specport
from specport.cli import main
from specport.core.planning.planner import Planner
from specport.drafters.model.parallel import ParallelDrafter
from specport.errors import InvalidInput, ModelError
from specport.models import bundle, manifest
from specport.models.bundle import BUNDLE_FILE
from specport.models.folder_checks import IR_XML
from specport.models.kinds import bigrams
from specport.models.kinds.parallel import Parallel

DEPTH, MASK = 3, len(tiny_models.vocabulary())
TURNS = ("Summarize: a b c", "What is d?") * 2
PRECISION = {"precision": "int8", "draft_precision": "int8"}
ASKED = Request(layers=4, head_tokens=100, distil_tokens=120, epochs=40.0, learning_rate=3e-3, parallel=DEPTH)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("target")
    tiny_models.save_hf(folder / "tiny", "llama", 4)
    return str(folder / "tiny")


@pytest.fixture(scope="module", autouse=True)
def _small(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Always the same two turns: there is nothing else to learn from a random target.
        patch.setattr(turns, "_openings", lambda rng: [turns.Turn(text) for text in TURNS])
        patch.setattr(passages, "turn", lambda rng: TURNS[0])
        patch.setattr(turns, "SHARD", 4)
        patch.setattr(writer, "ANSWER_TOKENS", 16)
        patch.setattr(quick_costs, "BUDGET_S", 0.5)
        patch.setattr(prompts, "CHOOSING", ("Why is that?", "How are you?"))
        patch.setattr(prompts, "HELD_OUT", ("Who is it?", "When was it?"))
        yield


@pytest.fixture(scope="module")
def draft(target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("draft") / "draft"
    build(target, out, ASKED, **PRECISION)
    return out


def test_a_draft_is_built_and_used(draft: Path, target: str) -> None:
    made = bundle.read(draft, thorough=True)
    about = made.parallel
    assert about is not None and (about.depth, about.mask_token_id) == (DEPTH, MASK)
    assert made.head_tokens is not None and max(made.head_tokens) < MASK
    assert made.distilled["trained"] and len(made.distilled["survival"]) == DEPTH
    assert sum(made.distilled["survival"]) > sum(made.distilled["survival_before"])
    assert about.bigrams == (draft / bigrams.FILE).is_file() == ("survival_unranked" in made.distilled)
    assert made.measured["same_text"] == 2 and made.measured["depth"] == DEPTH
    assert len(made.measured["acceptance_by_depth"]) == DEPTH
    plain = specport.load(target, draft="none", precision="int8").generate("What is it?", max_new_tokens=24)
    for expression in (str(draft), f"ngram|{draft}"):
        for policy in ("fixed", "planned"):
            pipeline = specport.load(target, draft=expression, policy=policy, precision="int8")
            assert pipeline.generate("What is it?", max_new_tokens=24).token_ids == plain.token_ids
    drafters = pipeline._engine.policy._sources
    assert any(isinstance(source.drafter, ParallelDrafter) for source in drafters)


def test_inspect_shows_survival_costs_and_speed(draft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "inspect", str(draft)]) == 0
    shown = capsys.readouterr().out
    assert f"parallel  {DEPTH} tokens a pass, MASK {MASK}" in shown
    assert "survival  " in shown and "before training" in shown
    assert f"draft cost  {bundle.read(draft).measured['ms_by_width']['draft'][0]:.1f}, " in shown
    assert "times plain decoding with 1, 2, ... draft tokens a round; best" in shown
    assert main(["quantize", "inspect", str(draft), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parallel"]["depth"] == DEPTH


def test_its_measured_cost_and_acceptance_are_the_planners_first_guesses(draft: Path, target: str) -> None:
    found = bundle.read(draft)
    with specport.load(target, draft=str(draft), precision="int8") as pipeline:
        planner = pipeline.engine.policy
        assert isinstance(planner, Planner)
        source = planner._sources[-1]
        assert (source.assumed, source.reach) == (found.cost, found.reach) and found.cost is not None


def test_a_draft_is_trained_further(draft: Path, target: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is a draft bundle already"):
        build(target, tmp_path / "other", Request(layers=2), source=str(draft), **PRECISION)
    with pytest.raises(InvalidInput, match="keeps its layers"):
        build(target, tmp_path / "other", ASKED, source=str(draft), **PRECISION)
    asked = Request(distil_tokens=120, epochs=4.0, learning_rate=1e-3, parallel=DEPTH)
    made = build(target, tmp_path / "further", asked, source=str(draft), **PRECISION).bundle
    before = bundle.read(draft)
    assert (made.layers, made.num_layers, made.head) == (before.layers, before.num_layers, before.head)
    assert made.source == before.source and made.provenance["from"] == before.provenance
    assert made.distilled["survival_before"][1] > 0.5 * before.distilled["survival"][1]  # MASK was kept


def test_exports_have_what_other_runtimes_look_for(draft: Path, target: str, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    assert main(["quantize", "export", str(draft), "--to", "hf", "--out", str(out), "--quiet"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["spd_type"], config["pard_token"]) == ("pard", MASK)
    assert config["vocab_size"] == MASK + 1
    about = bundle.read(out).parallel
    assert about is not None and about == bundle.read(draft).parallel
    assert about.bigrams == (out / bigrams.FILE).is_file()
    plain = specport.load(target, device="torch-cpu", draft="none").generate("What?", max_new_tokens=12)
    fast = specport.load(target, device="torch-cpu", draft=str(out), policy="fixed")
    drafted = fast.generate("What?", max_new_tokens=12)
    assert drafted.token_ids == plain.token_ids and drafted.metrics.num_draft_tokens > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0}, {"depth": 99}, {"depth": 2.5}, {"depth": True}, {"depth": 2}, {"mask_token_id": -1},
        {"mask_token_id": 1 << 40}, {"mask_token_id": "x"}, {"mask_token_id": 5}, {"temperatures": [0.0] * 3},
        {"temperatures": [float("nan")] * 3}, {"temperatures": 7}, {"temperatures": ["hot"] * 3}, 
        {"bigrams": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_with_nonsense_is_refused(wrong: dict[str, object], draft: Path, tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    shutil.copytree(draft, folder)
    about = (manifest.read(folder, BUNDLE_FILE) or {})["about"]
    about["parallel"] |= wrong
    manifest.write(folder, about, BUNDLE_FILE)
    with pytest.raises(ModelError, match="manifest"):
        bundle.read(folder)
    about["parallel"] = None
    manifest.write(folder, about, BUNDLE_FILE)
    assert bundle.read(folder).parallel is None and (folder / IR_XML).is_file()


def test_requests_that_cannot_be_met() -> None:
    with pytest.raises(InvalidInput, match=r"must be trained.*--distil"):
        Request(parallel=4)
    with pytest.raises(InvalidInput, match="must be from 2 to 16"):
        replace(ASKED, parallel=1)
    assert Parallel.of(None, None) is None
