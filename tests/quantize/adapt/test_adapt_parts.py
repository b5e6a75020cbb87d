"""The parts of an adaptation: the mixture, the judgement, the exchange of folders, and when to work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from specport.quantize.adapt import judging, mixing, old_text, swapping
from specport.quantize.adapt.idle import LOOK_S, LOOKS, NICENESS, QUIET_S, Pace, Stopped, low_priority
from specport.quantize.adapt.judging import Judgement, Replayed
from specport.quantize.adapt.mixing import Mixture
from specport.quantize.text import shards
from specport.quantize.train import batches
from specport.quantize.train.losses import columns_of, token_loss
from specport.quantize.train.parallel.chains import all_chains, extents, pack
from support.toys.toy_model import ToyModel
from support.toys.toy_pipeline import ToyTokenizer

from specport.core.planning.step_costs import StepCosts
from specport.drafters.context import DraftModel
from specport.errors import InvalidInput, ModelError
from specport.models import bundle
from specport.models.bundle import Bundle
from specport.progress import silent
from specport.traffic.dialogues import Dialogue, read_shard, save_shard
from specport.traffic.log import Settings, TrafficLog

Log = Callable[[int], TrafficLog]


def dialogue(seed: int, answer: int = 40, k: int = 16, start: int = 8) -> Dialogue:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(90, size=start + answer).astype(np.int32)
    top = np.tile(np.arange(k, dtype=np.int32), (answer, 1))
    return Dialogue(tokens, start, top, np.full((answer, k), 0.9 / k, dtype=np.float32))


@pytest.fixture
def make_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))

    def make(count: int) -> TrafficLog:
        log = TrafficLog("f")
        log.save(Settings(True, "draft", "toy"))
        for i in range(count):
            log.add([replace(dialogue(i), weights=np.full(40, 2, dtype=np.float32))])
        return log

    return make


def keys(texts: Any) -> list[bytes]:
    return [d.tokens.tobytes() for d in texts]


def test_half_is_own_half_is_old_and_nothing_held_out_is_learned(make_log: Log, tmp_path: Path) -> None:
    traffic = mixing.read(make_log(20))
    assert (len(traffic.to_learn), len(traffic.held_out)) == (16, 4)
    old = [dialogue(1000 + i, k=32) for i in range(150)]
    made = mixing.write(traffic, old, 1e6, tmp_path / "text")
    assert made == Mixture.stored(tmp_path / "text")
    assert made.own_tokens == made.old_tokens == 16 * 40 and made.epochs == mixing.MOST_EPOCHS
    held, learned = (read_shard(Path(path)) for path in made.shards)
    assert {*keys(traffic.held_out)} == {*keys(made.held_out_own)}
    assert keys(made.held_out_old) == keys(old[: len(made.held_out_old)])  # what the build held out too
    assert keys(held) == [*keys(made.held_out_own), *keys(made.held_out_old)]
    assert not {*keys(held)} & {*keys(learned)} and {*keys(traffic.to_learn)} <= {*keys(learned)}
    assert {d.top_ids.shape[1] for d in (*held, *learned)} == {16}
    batch = batches.batch(learned, "cpu")
    assert sorted(set(batch["weights"].tolist())) == [1, 2]


def test_little_time_takes_the_newest_texts_and_reads_them_once(make_log: Log, tmp_path: Path) -> None:
    traffic = mixing.read(make_log(30))
    made = mixing.write(traffic, [dialogue(1000 + i) for i in range(150)], 960, tmp_path / "text")
    learned = read_shard(Path(made.shards[1]))
    assert made.epochs == 1.0 and made.own_tokens == made.old_tokens == 400
    assert keys(learned)[:10] == keys(traffic.to_learn[::-1][:10])


def test_damaged_texts_are_skipped_with_a_note_and_equal_ones_count_once(make_log: Log) -> None:
    log = make_log(12)
    log.add([dialogue(3)])  # asked again, answered the same
    log.files()[0].write_bytes(b"damaged")
    traffic = mixing.read(log)
    assert len(traffic.to_learn) + len(traffic.held_out) == 11
    assert len(traffic.notes) == 1 and "1 texts were skipped" in traffic.notes[0]
    assert log.files()[0].name in traffic.notes[0]


def test_too_little_text_is_refused(make_log: Log, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"the log has 3 different texts.*specport adapt status"):
        mixing.read(make_log(3))
    traffic = mixing.read(make_log(10))
    with pytest.raises(InvalidInput, match="too little old text"):
        mixing.write(traffic, [dialogue(99)], 1e6, tmp_path)
    assert Mixture.stored(tmp_path) is None


def made_bundle(**distilled: Any) -> Bundle:
    return Bundle("toy", "", "fingerprint", "", "toy", "int8", (0,), 1, distilled=distilled)


def test_old_text_is_that_of_the_build(make_log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_log(0).folder.parent.parent
    assert old_text.find(made_bundle()) == []
    folder = root / "text" / "abc"
    names = ["passage-00000", "own-00000", "opened-00001", "opened-00000", "own-00001"]
    for i, name in enumerate(names):
        save_shard(folder / f"{name}.npz", [dialogue(i)])
    found = old_text.stored(made_bundle(text="abc"))
    # As `turns.plan_shards` has them.
    order = ["own-00000", "opened-00000", "own-00001", "passage-00000", "opened-00001"]
    assert [path.stem for path in found] == order
    assert len(old_text.find(made_bundle(text="abc"))) == 5
    for wrong in ("../text/abc", "", 7, None):
        assert old_text.find(made_bundle(text=wrong)) == []
    monkeypatch.setattr(shards, "folder_for", lambda *_: folder)
    assert len(old_text.find(made_bundle(text="gone"))) == 5


def test_rounds_are_replayed_as_a_fixed_length_would_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    target, toy = ToyModel(), ToyModel(noise=0.5)
    prompt = [3, 1, 4]
    answer = target.greedy(prompt, 50)
    none = np.zeros((50, 1), np.int32)
    text = Dialogue(np.int32([*prompt, *answer]), 3, none, none.astype(np.float32))
    monkeypatch.setattr(ToyTokenizer, "vocab_size", 11, raising=False)
    draft = DraftModel(toy, ToyTokenizer(), "toy", StepCosts.prior({1: 1.0}))
    found = judging.replay(draft, [text, text], silent)
    rounds, at, accepted = 0, 0, [0] * judging.DEPTH
    while at < 50:
        chain = toy.greedy([*prompt, *answer[:at]], judging.DEPTH)
        count = 0
        while count < min(judging.DEPTH, 50 - at) and chain[count] == answer[at + count]:
            accepted[count] += 1
            count += 1
        rounds, at = rounds + 1, at + count + 1
    assert 1 < 50 / rounds < judging.DEPTH
    assert found.tokens == 100 and found.tokens_per_step == pytest.approx(50 / rounds, abs=1e-4)
    assert found.by_depth == pytest.approx([a / rounds for a in accepted], abs=1e-4)
    assert toy.num_open == 0


@pytest.mark.parametrize(
    ("own", "old", "better"),
    [(2.041, 2.0, True), (2.03, 2.0, False), (1.0, 2.0, False), (2.5, 1.95, True), (2.5, 1.93, False)],
)
def test_only_a_better_draft_is_kept(own: float, old: float, better: bool) -> None:
    before, after = Replayed(2.0, (), 9), [Replayed(tokens, (), 9) for tokens in (own, old)]
    assert Judgement(before, after[0], before, after[1]).better is better


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path_factory.mktemp("cache")))


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "weights").write_text(text)
    bundle.write(path, made_bundle())
    return path


def versions(draft: Path) -> tuple[str, str | None]:
    previous = swapping.previous_of(draft) / "weights"
    assert {p.name for p in draft.parent.iterdir()} <= {draft.name, f"{draft.name}.previous", "new"}
    return (draft / "weights").read_text(), previous.read_text() if previous.is_file() else None


def test_one_previous_version_is_kept_and_undo_exchanges_them(tmp_path: Path) -> None:
    draft, new = folder_with(tmp_path / "draft", "1"), folder_with(tmp_path / "new", "2")
    with pytest.raises(InvalidInput, match="no previous version"):
        swapping.undo(draft)
    with open(draft / "weights") as held:
        swapping.install(new, draft)
        assert versions(draft) == ("2", "1") and held.read() == "1"  # whoever loaded the old one keeps it
    bundle.read(draft, thorough=True)
    shutil.rmtree(new)
    swapping.install(folder_with(tmp_path / "new", "3"), draft)
    assert versions(draft) == ("3", "2")
    swapping.undo(draft)
    assert versions(draft) == ("2", "3")
    swapping.undo(draft)
    assert versions(draft) == ("3", "2")


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("action", ["install", "undo"])
def test_an_interruption_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, killed: bool, action: str
) -> None:
    draft, new = folder_with(tmp_path / "draft", "2"), folder_with(tmp_path / "new", "3")
    folder_with(swapping.previous_of(draft), "1")
    real, left, dead = swapping.move, [at], []

    def move(source: Path, target: Path) -> None:
        left[0] -= 1
        if not left[0] or any(dead):
            dead.append(killed)  # a killed process does not clean up either
            raise PermissionError(13, "in use", str(target)) if not killed else KeyboardInterrupt
        real(source, target)

    act = (lambda: swapping.install(new, draft)) if action == "install" else (lambda: swapping.undo(draft))
    moves = 4 if action == "install" else 3
    error = pytest.raises(KeyboardInterrupt if killed else ModelError) if at <= moves else nullcontext()
    with monkeypatch.context() as patch, error:
        patch.setattr(swapping, "move", move)
        if killed:
            patch.setattr(swapping.shutil, "rmtree", lambda *a, **o: None)
        act()
    swapping.recover(draft)
    now = versions(draft)
    old, wanted = ("2", "1"), ("3", "2") if action == "install" else ("1", "2")
    assert now in ((wanted,) if at > moves else (old, wanted))
    swapping.install(new, draft)
    assert versions(draft)[0] == "3"


class Clock:
    """Time, and other programs' load at each time."""

    def __init__(self, load: Callable[[float], float]) -> None:
        self.now, self.load = 0.0, load

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def cores(self) -> float:
        return self.load(self.now)

    def pace(self, budget_s: float, idle: bool) -> Pace:
        return Pace(budget_s, idle=idle, load=lambda: self, clock=self.time, sleep=self.sleep)


def stop_of(work: Callable[[], None], clock: Clock) -> Stopped:
    """Return how steps of a second end that go on until they are stopped."""
    while True:
        clock.sleep(1.0)
        try:
            work()
        except Stopped as stopped:
            return stopped


def test_work_waits_for_an_idle_machine_and_stops_when_the_user_is_back() -> None:
    clock = Clock(lambda now: 1.0 if now < 100 or 500 < now < 600 else 0.0)
    pace = clock.pace(1e9, idle=True)
    pace.wait(silent)
    assert 100 + QUIET_S - 2 * LOOK_S <= clock.now <= 100 + QUIET_S + 2 * LOOK_S
    stages: list[str] = []
    progress = pace.checked(lambda stage, share: stages.append(stage))
    stopped = stop_of(lambda: progress("training", 0.5), clock)
    assert not stopped.for_good and set(stages) == {"training"}
    assert 500 < clock.now <= 500 + (LOOKS + 1) * LOOK_S
    pace.wait(silent)
    assert clock.now >= 600 + QUIET_S - 2 * LOOK_S
    progress("training", 0.5)


def test_a_single_busy_look_does_not_stop_the_work() -> None:
    clock = Clock(lambda now: 1.0 if 500 < now <= 500 + LOOK_S else 0.0)
    pace = clock.pace(1e9, idle=True)
    while clock.now < 1000:
        clock.sleep(LOOK_S)
        pace.check()


def test_the_budget_counts_work_only() -> None:
    clock = Clock(lambda now: 1.0 if now < 1000 else 0.0)
    pace = clock.pace(100.0, idle=True)
    pace.wait(silent)
    began = clock.now
    stopped = stop_of(pace.check, clock)
    assert stopped.for_good and 100 <= clock.now - began <= 102
    busy = Clock(lambda now: 1.0).pace(100.0, idle=False)
    busy.wait(silent)
    busy.check()


@pytest.mark.parametrize("loss", ["kl", "ce", "tv"])
def test_weights_count_in_the_loss(loss: str) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(6, 20)).astype(np.float32))
    column = torch.arange(20)
    texts = [dialogue(0, answer=6, k=4)]
    texts[0].tokens[:] %= 20
    plain = batches.batch(texts, "cpu")
    assert "weights" not in plain
    log_q = torch.log_softmax(logits, dim=-1)
    logs, best = log_q.gather(1, columns_of(plain, column)), log_q.amax(dim=-1)
    each = [
        token_loss(logs[i : i + 1], best[i : i + 1], {"top_probs": plain["top_probs"][i : i + 1]}, loss)[0]
        for i in range(6)
    ]
    assert token_loss(logs, best, plain, loss)[0].item() == pytest.approx(np.mean(each), rel=1e-5)
    weights = np.float32([1, 1, 2, 2, 2, 1])
    weighted = batches.batch([replace(texts[0], weights=weights)], "cpu")
    found = token_loss(logs, best, weighted, loss)[0].item()
    assert found == pytest.approx(np.average(each, weights=weights), rel=1e-5)


def test_weights_count_behind_masks_too() -> None:
    texts = [dialogue(0, answer=6), replace(dialogue(1, answer=6), weights=np.float32([1, 1, 2, 2, 2, 1]))]
    for text in texts:  # every token is certain, so that chains weigh no less
        text.top_ids[:, 0], text.top_probs[:, 0] = text.tokens[text.start :], 1.0
    batch = batches.batch(texts, "cpu")
    lengths, starts = extents(batch)
    rows = [all_chains(*shape, 3) for shape in zip(lengths.tolist(), starts.tolist(), strict=True)]
    packed = pack(batch, rows, 99)
    predicted = (packed.positions[packed.texts, packed.places] + 1).numpy()
    expected = np.where(packed.texts.numpy() == 1, np.float32([1, 1, 2, 2, 2, 1])[predicted - 8], 1.0)
    assert packed.weights.numpy() == pytest.approx(expected)


@pytest.mark.skipif(os.name == "nt", reason="Windows has classes of priority")
@pytest.mark.parametrize(("before", "during"), [(0, NICENESS), (15, 15)])
def test_the_priority_is_low_for_an_adaptation_only(
    before: int, during: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = before

    class Process:
        def nice(self, wanted: int | None = None) -> int:
            nonlocal value
            value = value if wanted is None else wanted
            return value

    monkeypatch.setattr("specport.quantize.adapt.idle.psutil.Process", Process)

    def interrupted() -> None:
        with low_priority():
            assert value == during
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert value == before
