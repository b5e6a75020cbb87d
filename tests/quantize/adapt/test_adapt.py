"""A draft that learns from its user, from end to end on tiny models: adapted, judged, stopped, undone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from specport.quantize.adapt import adapt as adapting
from specport.quantize.adapt import judging, mixing, old_text, swapping
from specport.quantize.adapt.adapt import adapt, work_of
from specport.quantize.adapt.idle import Pace
from specport.quantize.adapt.result import ADAPTED, KEPT, REFUSED, STOPPED
from specport.quantize.text import passages, turns, writer
from support.tiny import tiny_models, tiny_parallel

import specport
from specport.cli import main
from specport.errors import InvalidInput, ModelError
from specport.models import bundle
from specport.models.bundle import Bundle
from specport.models.folder_checks import IR_BIN
from specport.models.kinds import bigrams
from specport.models.kinds.parallel import Parallel
from specport.models.source import ModelFiles
from specport.runtime import conversion
from specport.traffic.dialogues import save_shard
from specport.traffic.log import Settings, TrafficLog

MASK = len(tiny_models.vocabulary())
DISTILLED = {
    "text": "old", "mlp_channels": [], "agreement": 0.1, "agreement_before": 0.1, "tokens_read": 1,
    "seconds": 0,
}  # fmt: skip
HOW = {"learning_rate": 3e-3, "budget_s": 2000.0}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SPECPORT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "HELD_OUT_TOKENS", 150)
    monkeypatch.setattr(mixing, "MOST_EPOCHS", 30.0)
    monkeypatch.setattr("specport.quantize.adapt.idle.low_priority", nullcontext)  # not every user can end it


@pytest.fixture(scope="module")
def target(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = tmp_path_factory.mktemp("target") / "tiny"
    tiny_models.save_hf(folder, "llama", 2)
    return conversion.resolve(str(folder), precision="int8")


@pytest.fixture(scope="module", params=["in turn", "parallel"])
def built(
    request: pytest.FixtureRequest, target: ModelFiles, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a random draft. Text for it is in the cache, and has been recorded: a permutation of tokens."""
    folder = tmp_path_factory.mktemp("built")
    parallel = Parallel(3, MASK, (1.0,) * 3) if request.param == "parallel" else None
    more = {"vocab_size": MASK + 1, "pard_token": MASK, "spd_type": "pard"} if parallel else {}
    tiny_models.save_hf(folder / "hf", "llama", 1, **more)
    out = folder / "draft"
    out.mkdir()
    conversion.convert(folder / "hf", out, "int8")
    made = Bundle(
        target="tiny", target_shape=bundle.shape(target.folder), target_fingerprint=target.fingerprint,
        tokenizer="", source="tiny", precision="int8", layers=(0,), num_layers=2,
        head=((0, MASK),) if parallel else None, distilled=DISTILLED,
        parallel=parallel, provenance={"date": "today"},
    )  # fmt: skip
    bundle.write(out, made)
    text = cache / "text" / "old"
    for number in range(4):
        save_shard(text / f"opened-0000{number}.npz", tiny_parallel.dialogues(20, 100 + number))
    log = TrafficLog(target.fingerprint)
    log.save(Settings(True, str(out), "tiny", model=target.source))
    log.clear()
    for dialogue in tiny_parallel.dialogues(60, 1):
        log.add([dialogue])
    log.note(on=False)
    return out


@pytest.fixture
def draft(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "draft"))


def test_texts_are_learned_and_undone(
    draft: Path, target: ModelFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    before = bundle.read(draft)
    options = {"precision": "int8", "policy": "fixed"}
    plain = specport.load(target.source, draft="none", precision="int8").generate("What?", max_new_tokens=24)
    running = specport.load(target.source, draft=str(draft), **options)
    command = ["adapt", "--draft", str(draft), "--learning-rate", "3e-3", "--budget", "2000s", "--quiet"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    judged = found["judgement"]
    assert found["state"] == KEPT and found["own_tokens"] > 200 and found["old_tokens"] > 200
    assert judged["own_after"]["tokens_per_step"] >= 1.02 * judged["own_before"]["tokens_per_step"]
    made = bundle.read(draft, thorough=True)
    assert made.provenance[ADAPTED]["times"] == 1 and made.provenance["date"] == "today"
    assert made.reach == tuple(judged["own_after"]["by_depth"]) != before.reach  # the planner's first guess
    same = replace(before, provenance={}, parallel=None)
    assert replace(made, provenance={}, parallel=None) == same
    assert (made.parallel is None) == (before.parallel is None)
    # The tokens of these texts follow from those before them.
    assert (draft / bigrams.FILE).is_file() == (made.parallel is not None and made.parallel.bigrams)
    log = TrafficLog(made.target_fingerprint)
    settings = log.settings()
    assert settings is not None and settings.last is not None and settings.last["state"] == KEPT
    assert not any(log.work.iterdir())
    # A process that had loaded the draft goes on with it, and the next one takes the new one.
    assert running.generate("What?", max_new_tokens=24).token_ids == plain.token_ids
    fresh = specport.load(target.source, draft=str(draft), **options)
    result = fresh.generate("What?", max_new_tokens=24)
    assert result.token_ids == plain.token_ids and result.metrics.num_draft_tokens > 0
    assert main(["quantize", "inspect", str(draft)]) == 0
    assert "adapted  " in capsys.readouterr().out
    weights = (draft / IR_BIN).read_bytes()
    assert main(["adapt", "--draft", str(draft), "--undo"]) == 0
    assert bundle.read(draft) == before and (draft / IR_BIN).read_bytes() != weights
    assert main(["adapt", "--draft", str(draft), "--undo"]) == 0
    assert bundle.read(draft) == made and (draft / IR_BIN).read_bytes() == weights


def test_a_draft_that_is_not_better_is_not_kept(
    draft: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if bundle.read(draft).parallel:
        pytest.skip("the same for parallel drafts")
    before = (draft / IR_BIN).read_bytes()
    monkeypatch.setattr(judging, "MARGIN", 9.0)
    assert main(["adapt", "--draft", str(draft), "--learning-rate", "3e-3", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "not kept: the draft stays as it was" in captured.err and "has to rise by 900%" in captured.out
    # Training that spoils the draft is not even compressed.
    spoiled = adapt(draft, budget_s=60.0, learning_rate=1e-12)
    assert (spoiled.state, spoiled.judgement) == (REFUSED, None)
    assert (draft / IR_BIN).read_bytes() == before
    assert {path.name for path in draft.parent.iterdir()} == {"draft"}


def test_an_adaptation_that_was_stopped_goes_on_and_gives_the_same(
    draft: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bundle.read(draft).parallel:
        pytest.skip("the same, but for the training, which has tests of its own")
    assert adapt(draft, **HOW).state == KEPT
    wanted = (draft / IR_BIN).read_bytes()
    other = Path(shutil.copytree(built, tmp_path / "other"))
    work = work_of(TrafficLog(bundle.read(other).target_fingerprint), other)
    before = (other / IR_BIN).read_bytes()

    def until(word: str) -> Callable[[str, float], None]:
        def progress(stage: str, share: float) -> None:
            if stage.startswith(word):
                raise KeyboardInterrupt

        return progress

    for stage in ("decompressing weights", "distilling"):
        with pytest.raises(KeyboardInterrupt):
            adapt(other, progress=until(stage), **HOW)
        assert work.is_dir() and (other / IR_BIN).read_bytes() == before
    assert adapt(other, pace=Pace(0.0), **HOW).state == STOPPED  # in training's first report
    with monkeypatch.context() as patch:
        patch.setattr(adapting.swapping, "install", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            adapt(other, **HOW)
    assert adapt(other, **HOW).state == KEPT
    assert (other / IR_BIN).read_bytes() == wanted and not work.exists()
    assert (swapping.previous_of(other) / IR_BIN).read_bytes() == before


def test_the_target_writes_text_where_there_is_none(
    draft: Path, cache: Path, target: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bundle.read(draft).parallel:
        pytest.skip("the same for parallel drafts")
    monkeypatch.setattr(turns, "OPENINGS", {5: ("Why", "How")})
    monkeypatch.setattr(passages, "turn", lambda rng: str(rng.choice(["Summarize: a b c", "What is d?"])))
    monkeypatch.setattr(turns, "SHARD", 4)
    monkeypatch.setattr(writer, "ANSWER_TOKENS", 16)
    monkeypatch.setattr(mixing, "HELD_OUT_TOKENS", 30)
    monkeypatch.setattr(mixing, "MOST_EPOCHS", 1.0)
    monkeypatch.setattr(old_text, "_LEAST_TOKENS", 100)
    log = TrafficLog(target.fingerprint)
    os.replace(cache / "text", cache / "hidden")
    try:
        log.note(model="")
        with pytest.raises(InvalidInput, match="specport adapt --model MODEL"):
            adapt(draft, budget_s=5.0)
        tiny_models.save_hf(draft.parent / "other", "llama", 3)
        with pytest.raises(ModelError, match="was built for"):
            adapt(draft, budget_s=5.0, model=str(draft.parent / "other"))
        log.note(model=target.source)
        result = adapt(draft, budget_s=600.0, learning_rate=1e-12)
        assert result.old_tokens > 10 and [*(cache / "text").glob("*/opened-00000.npz")]
    finally:
        shutil.rmtree(cache / "text", ignore_errors=True)
        os.replace(cache / "hidden", cache / "text")


def test_too_little_text_is_said_before_anything_slow(
    draft: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "LEAST_TEXTS", 1000)
    assert main(["adapt", "--draft", str(draft), "--quiet"]) == 2
    assert "specport adapt status" in capsys.readouterr().err
    assert not work_of(TrafficLog(bundle.read(draft).target_fingerprint), draft).exists()
