"""A draft from end to end on a tiny model: built, distilled, interrupted and resumed, used."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from specport.quantize.build import build
from specport.quantize.evaluate import quick_costs
from specport.quantize.plan import Plan
from specport.quantize.request import Request
from specport.quantize.text import dialogues, passages, prompts, turns, writer
from specport.quantize.train import distilled as record
from support.tiny import tiny_models

import specport
from specport.cli import main
from specport.core.ports import Model
from specport.errors import InvalidInput, ModelError
from specport.jobs import worker
from specport.models import bundle, cache
from specport.models.folder_checks import IR_BIN
from specport.models.kinds.parallel import Parallel
from specport.runtime.devices.registry import Loaded
from specport.runtime.loading import Loader

LAYERS = 4
DISTILLED = Request(layers=2, mlp=0.5, head_tokens=0, distil_tokens=60, epochs=2.0)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("target")
    tiny_models.save_hf(folder / "tiny", "llama", LAYERS)
    return str(folder / "tiny")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache for the whole file, so that the model is converted once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, converted: Path) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(converted))
    monkeypatch.setattr(turns, "OPENINGS", {5: ("Why", "How")})
    monkeypatch.setattr(passages, "turn", lambda rng: str(rng.choice(["Summarize: a b c", "What is d?"])))
    monkeypatch.setattr(turns, "SHARD", 4)
    monkeypatch.setattr(writer, "ANSWER_TOKENS", 12)
    monkeypatch.setattr(quick_costs, "BUDGET_S", 0.5)
    monkeypatch.setattr(prompts, "CHOOSING", ("Why is that?", "How are you?"))
    monkeypatch.setattr(prompts, "HELD_OUT", ("Who is it?", "When was it?"))


@pytest.fixture(scope="module")
def distilled(target: str, converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the result of a build that was not interrupted."""
    out = tmp_path_factory.mktemp("distilled") / "draft"
    with pytest.MonkeyPatch.context() as patch:
        _small.__wrapped__(patch, converted)  # type: ignore[attr-defined]
        build(target, out, DISTILLED)
    return out


def test_a_draft_learns_from_the_users_prompts_and_is_measured_on_others(
    target: str, converted: Path, tmp_path: Path
) -> None:
    own = ("Who?", "When was it?", "Where to?", "Why not?", "What else is there?", "How many?")
    request = Request(layers=2, mlp=0.5, head_tokens=0, distil_tokens=60, epochs=0.0, prompts=own)
    made = build(target, tmp_path / "draft", request).bundle
    assert made.measured["prompts"] == made.measured["same_text"] == 3
    tokenizer = specport.load(target).tokenizer
    asked = {
        tokenizer.decode(dialogue.tokens[: dialogue.start].tolist())
        for path in (converted / "text").rglob("own-*.npz")
        for dialogue in dialogues.read_shard(path)
    }
    assert len(asked) == 3
    assert all((sum(prompt in text for text in asked) == 1) == (prompt in own[::2]) for prompt in own)


def test_a_draft_is_built_and_used(distilled: Path, target: str) -> None:
    made = bundle.read(distilled, thorough=True)
    assert len(made.layers) == 2 and made.num_layers == LAYERS and made.layers[0] == 0
    assert made.head is None and made.distilled["tokens_read"] > 0 and made.distilled["seed"] == 0
    assert made.measured["same_text"] == made.measured["prompts"] == 2
    assert made.distilled["mlp_channels"] == [64, 128]
    assert made.provenance["versions"]["torch"]
    assert not distilled.with_name("draft.partial").exists()
    assert [*(cache.cache_root() / "text").glob("*/opened-00000.npz")]
    plain = specport.load(target, draft="none").generate("What is it?", max_new_tokens=24)
    for draft in (str(distilled), "auto"):
        pipeline = specport.load(target, draft=draft)
        drafted = pipeline.generate("What is it?", max_new_tokens=24)
        assert drafted.token_ids == plain.token_ids
    fixed = specport.load(target, draft=str(distilled), policy="fixed").generate("What?", max_new_tokens=24)
    assert fixed.metrics.num_draft_tokens > 0


def test_a_build_that_was_stopped_goes_on_and_gives_the_same(
    distilled: Path, target: str, tmp_path: Path
) -> None:
    stages: list[str] = []

    def until(word: str, count: int) -> Callable[[str, float], None]:
        left = [count]

        def progress(stage: str, share: float) -> None:
            stages.append(stage)
            if stage.startswith(word):
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt

        return progress

    out = tmp_path / "draft"
    for word, count in (("without", 1), ("distilling", 2), ("measuring", 1)):
        with pytest.raises(KeyboardInterrupt):
            build(
                target,
                out,
                DISTILLED,
                progress=until(word, count) if word != "without" else until("layer", 1),
            )
        assert not out.exists() and out.with_name("draft.partial").is_dir()
    assert not any(stage.startswith("the target writes") for stage in stages if "calibration" in stage)
    stages.clear()
    built = build(target, out, DISTILLED, progress=until("never", 1))
    # What was decided stays decided, and what was fitted fitted.
    assert not any(stage.startswith(("layer", "fitting")) for stage in stages)
    assert (out / IR_BIN).read_bytes() == (distilled / IR_BIN).read_bytes()
    assert built.bundle.distilled["losses"] == bundle.read(distilled).distilled["losses"]
    assert not out.with_name("draft.partial").exists()


def test_what_was_distilled_elsewhere_keeps_its_layers_its_head_and_its_depth(
    target: str, tmp_path: Path
) -> None:
    source = tmp_path / "distilled-elsewhere"
    shutil.copytree(target, source)
    facts = {"layers": LAYERS, "precision": "int8", "agreement": 0.5, "agreement_before": 0.25}
    head = [[0, 90], [100, 110]]
    parallel = Parallel(3, 200, (1.0, 1.5, 1.25))
    record.write(source, {**facts, record.PARALLEL: asdict(parallel)}, head)
    made = build(target, tmp_path / "draft", Request(), source=str(source)).bundle
    assert made.distilled == facts and made.precision == "int8"
    assert made.parallel == parallel and made.measured["depth"] == 3 and made.measured["same_text"] == 2
    assert made.head is not None and [list(ids) for ids in made.head] == head and len(made.layers) == LAYERS
    (source / record.NAME).write_text('{"layers": 4, "precision": "int8", "head": [[9, 3]]}')
    with pytest.raises(ModelError, match="not the record of a distillation"):
        build(target, tmp_path / "other", Request(), source=str(source))


def test_a_full_disk_leaves_no_half_bundle(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    out, asked = tmp_path / "draft", Request(layers=3, head_tokens=0)
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "write", full)
        with pytest.raises(ModelError, match=r"No space left on device.*free some space"):
            build(target, out, asked)
    assert not out.exists()
    assert len(build(target, out, asked).bundle.layers) == 3


def test_a_child_that_the_system_ended_is_told_of(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        children.append(start(*arguments, **options))
        return children[-1]

    monkeypatch.setattr(worker.subprocess, "Popen", popen)

    def kill(stage: str, share: float) -> None:
        if stage.startswith("distilling"):
            children[-1].kill()

    with pytest.raises(ModelError, match="most likely because there is not enough memory"):
        build(target, tmp_path / "draft", DISTILLED, progress=kill)
    assert not (tmp_path / "draft").exists()


def test_the_targets_memory_is_free_while_a_draft_is_trained(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Model]] = []
    load = Loader.target_with

    def target_with(self: Loader, *args: Any, **options: Any) -> Loaded:
        found = load(self, *args, **options)
        loaded.append(weakref.ref(found.model))
        return found

    class Stopped(Exception):
        pass

    def run(*_: object, **__: object) -> None:
        gc.collect()
        assert loaded and not any(model() for model in loaded)
        raise Stopped

    monkeypatch.setattr(Loader, "target_with", target_with)
    monkeypatch.setattr(worker, "run", run)
    with pytest.raises(Stopped):
        build(target, tmp_path / "draft", DISTILLED)


def test_several_processes_train_together(target: str, tmp_path: Path) -> None:
    asked = Request(layers=2, head_tokens=100, distil_tokens=60, epochs=4.0)
    made = build(target, tmp_path / "draft", asked, processes=2).bundle
    assert made.head_tokens is not None and 100 <= len(made.head_tokens) <= 103  # and special ones
    losses = made.distilled["losses"]
    assert len(losses) >= 2 and losses[-1] < losses[0]


def test_folders_of_others_stay_as_they_are(target: str, tmp_path: Path) -> None:
    mine = tmp_path / "draft.partial"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match="no build made it"):
        build(target, tmp_path / "draft", Request(layers=2))
    assert (mine / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InvalidInput, match="processes is 0"):
        build(target, tmp_path / "other", Request(), processes=0)
    with pytest.raises(InvalidInput, match=r"has to be distilled.*--distil"):
        Request(mlp=0.5)
    with pytest.raises(InvalidInput, match=r"unknown measure.*agreement, angle"):
        Request(by="luck")


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    from specport.quantize.prune.choose import Choice

    from specport.calibration.heads import Head

    choice = Choice(4, 2, ((), (2,), (1, 3)), (0.9, 0.8, 0.5), (3.0, 2.5, 2.0), (10.0, 11.0, 12.0))
    heads = (Head(None, 9, 3.0, 0.9, 10.0), Head((0, 1, 5), 3, 2.0, 0.8, 11.0))
    plan = Plan(heads, (0, 1, 5), choice)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.load(tmp_path / "other.json") is None


@pytest.mark.parametrize("by", ["angle", "influence"])
def test_the_command_tells_what_it_did(
    by: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "draft"
    assert main(["quantize", "--target", target, "--layers", "3", "--by", by, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "without layer" in shown.out and "used" in shown.out and "same text  2/2" in shown.out
    assert bundle.read(out).provenance["layers_by"] == by
    assert main(["quantize", "--target", target, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_layers_are_looked_at(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "layers", "--target", target, "--quiet"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("with all layers: agreement") and len(rows) == 3 + LAYERS + 2 + 2
    assert main(["quantize", "layers", "--target", target, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["angles"]) == len(found["agreements"]) == LAYERS
    assert [block["size"] for block in found["blocks"]] == [1, 2]
    assert all(0.0 <= angle <= 1.0 for angle in found["angles"])


def test_a_device_that_cannot_build_names_the_way_round(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "draft"
    command = ["quantize", "--target", target, "--device", "torch-cpu", "--layers", "2", "--out", str(out)]
    assert main([*command, "--quiet"]) == 2
    assert "--to hf" in capsys.readouterr().err
    assert not out.exists() and not out.with_name("draft.partial").exists()
