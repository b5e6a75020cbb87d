"""What is recorded of a user's texts, and that nothing is where it is off."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.generations import PROMPT, begin, output, run
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel
from support.toys.toy_weights import Tables

import specport
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Needs
from specport.core.sampling.params import SamplingParams
from specport.core.verify.verifier import TargetVerifier
from specport.errors import ModelError
from specport.models.cache import cache_root
from specport.traffic import log as logs
from specport.traffic import recorder as recording
from specport.traffic.dialogues import Dialogue, read_shard
from specport.traffic.log import Settings, TrafficLog
from specport.traffic.recorder import Recorder, recorder_for

ON = Settings(True, "draft", "toy")
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.2, seed=3)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrafficLog:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    made = TrafficLog("0")
    made.save(ON)
    return made


def recorded(log: TrafficLog, target: ToyModel, drafter: ToyDrafter | None = None, **options: Any) -> Engine:
    """Return an engine whose texts are recorded; with a drafter it always drafts four tokens."""
    recorder = Recorder(log)
    policy = FirstProposal([drafter], lambda: Fixed(4), tree=False) if drafter else None
    verifier = TargetVerifier(target, policy.needs if policy else Needs(), recorder.watch)
    return Engine(target, policy, verifier, on_end=recorder.ended, on_update=recorder.outdated, **options)


def texts(log: TrafficLog) -> list[Dialogue]:
    return [dialogue for path in log.files() for dialogue in read_shard(path)]


def check(target: ToyModel, dialogue: Dialogue) -> None:
    """Assert that the likeliest tokens are those of the target's table, at each token of the answer."""
    tokens = dialogue.tokens
    for i in range(dialogue.start, len(tokens)):
        row = target.table[tokens[i - 2], tokens[i - 1]].astype(np.float64)
        probs = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        place = i - dialogue.start
        assert dialogue.top_ids[place].tolist() == np.argsort(-probs, kind="stable").tolist()
        assert dialogue.top_probs[place] == pytest.approx(np.sort(probs)[::-1], abs=1e-3)


@pytest.mark.parametrize("noise", [None, 0.0, 0.6])
@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
def test_each_token_of_the_answer_has_the_targets_likeliest(
    log: TrafficLog, params: SamplingParams, noise: float | None
) -> None:
    target = ToyModel()
    drafter = None if noise is None else ToyDrafter(ToyModel(noise=noise))
    generations = [begin(prompt, 30, params=params) for prompt in (PROMPT, [7, 7])]
    run(recorded(log, target, drafter), *generations)
    found = {tuple(d.tokens.tolist()): d for d in texts(log)}
    assert {*found} == {tuple(g.tokens) for g in generations}
    for g in generations:
        dialogue = found[tuple(g.tokens)]
        assert dialogue.start == g.num_prompt_tokens and len(dialogue.top_ids) == 30
        check(target, dialogue)


def test_what_precedes_a_rejection_weighs_more(log: TrafficLog) -> None:
    target, draft = ToyModel(), ToyModel(noise=0.6)
    (want,) = run(Engine(target), begin(n=40))
    run(recorded(log, target, ToyDrafter(draft)), begin(n=40))
    expected = np.ones(40)
    at = 1  # the first token comes without a draft
    while at < 39:
        context = [*PROMPT, *want[:at]]
        chain = draft.greedy(context, min(4, 40 - at - 1))
        count = next((i for i, t in enumerate(chain) if t != want[at + i]), len(chain))
        if count < len(chain):
            expected[max(0, at + count - 3) : at + count + 1] = 2
        at += count + 1
    (dialogue,) = texts(log)
    assert dialogue.weights is not None and 1 < expected.mean() < 2
    assert dialogue.weights.tolist() == expected.tolist()


def test_plain_decoding_is_recorded_with_equal_weights(log: TrafficLog) -> None:
    run(recorded(log, ToyModel()), begin(n=20))
    (dialogue,) = texts(log)
    assert dialogue.weights is not None and set(dialogue.weights.tolist()) == {1.0}


def test_a_text_that_ends_inside_an_accepted_path(log: TrafficLog) -> None:
    target = ToyModel()
    eos = frozenset([target.greedy(PROMPT, 40)[7]])
    generation = begin(eos_ids=eos)
    run(recorded(log, target, ToyDrafter(target)), generation)
    (dialogue,) = texts(log)
    assert dialogue.tokens.tolist() == generation.tokens and len(dialogue.top_ids) < 12
    check(target, dialogue)


def test_preempted_and_interrupted_texts_are_whole(log: TrafficLog) -> None:
    target = ToyModel(cache_tokens=70)
    engine = recorded(log, target, ToyDrafter(ToyModel(noise=0.4)))
    generations = [begin(prompt, 40) for prompt in (PROMPT, [7, 7])]
    left = [9]

    def interrupt() -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    target.during_step = interrupt
    for generation in generations:
        engine.add(generation)
    interrupted = 0
    while engine.num_unfinished:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted and sum(g.metrics.num_preemptions for g in generations)
    found = {tuple(d.tokens.tolist()): d for d in texts(log)}
    assert {*found} == {tuple(g.tokens) for g in generations}
    for dialogue in found.values():
        check(target, dialogue)


def test_long_texts_are_cut_into_pieces_with_their_context(
    log: TrafficLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "PIECE", 16)
    monkeypatch.setattr(recording, "CONTEXT", 8)
    monkeypatch.setattr(recording, "MOST", 45)
    target = ToyModel()
    generation = begin(n=60)
    run(recorded(log, target), generation)
    pieces = texts(log)
    assert [(d.start, len(d.tokens) - d.start) for d in pieces] == [(8, 16), (8, 16), (8, 13)]
    answers = [token for d in pieces for token in d.tokens[d.start :].tolist()]
    assert answers == output(generation)[:45]
    for dialogue in pieces:
        check(target, dialogue)


def test_the_text_is_that_of_an_engine_without_a_log(log: TrafficLog) -> None:
    want = run(Engine(ToyModel()), begin(params=SAMPLED))
    assert run(recorded(log, ToyModel()), begin(params=SAMPLED)) == want


def test_a_full_disk_ends_the_recording_with_one_warning_and_no_error(
    log: TrafficLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise ModelError("the disk is full")

    engine = recorded(log, ToyModel(), ToyDrafter(ToyModel(noise=0.4)))
    want = run(Engine(ToyModel()), begin(), begin([7, 7]))
    with monkeypatch.context() as patch:
        patch.setattr(logs, "save_shard", full)
        assert run(engine, begin(), begin([7, 7])) == want
    assert run(engine, begin()) == want[:1]
    assert [r.message for r in caplog.records] == [
        "texts are no longer recorded for specport adapt: the disk is full"
    ]
    assert log.files() == []


def test_new_weights_end_the_recording(log: TrafficLog, caplog: pytest.LogCaptureFixture) -> None:
    target = ToyModel()
    target.weight_updates = Tables(target)
    engine = recorded(log, target, ToyDrafter(ToyModel(noise=0.4)))
    before, interrupted = begin(), begin([7, 7])
    run(engine, before)
    engine.add(interrupted)
    engine.step()
    for _ in range(2):  # by an engine on the same model, which records nothing itself
        engine.beside(None).update_weights({"table": ToyModel(seed=9).table})
    while not interrupted.ended:
        engine.step()
    run(engine, begin([8, 8]))
    assert [d.tokens.tolist() for d in texts(log)] == [before.tokens]
    (warning,) = caplog.records
    assert "no longer recorded" in warning.message and "new weights" in warning.message


def test_a_bug_in_the_recording_does_not_reach_the_text(
    log: TrafficLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "_likeliest", lambda row: 1 / 0)
    want = run(Engine(ToyModel()), begin())
    assert run(recorded(log, ToyModel()), begin()) == want
    assert len(caplog.records) == 1 and "ZeroDivisionError" in caplog.records[0].message


def test_switching_off_ends_the_recording_of_running_programs(log: TrafficLog) -> None:
    engine = recorded(log, ToyModel())
    run(engine, begin(n=8))
    log.note(on=False)
    run(engine, begin([7, 7], n=8))
    assert len(log.files()) == 1
    log.clear()
    assert log.files() == [] and log.settings() == Settings(False, "draft", "toy")


def test_the_oldest_texts_are_dropped(log: TrafficLog) -> None:
    engine = recorded(log, ToyModel())
    run(engine, begin(n=12))
    size = log.size()
    log.note(max_bytes=round(4.5 * size))
    for first in range(9):
        run(engine, begin([first, 7], n=12))
    firsts = [int(d.tokens[0]) for d in texts(log)]
    assert log.size() <= 4.5 * size and firsts == [*range(9)][-len(firsts) :] and len(firsts) >= 3


def test_other_processes_texts_count_as_well(log: TrafficLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LOOK_EVERY", 2)
    monkeypatch.setattr(logs, "MAX_FILES", 8)
    mine, other = recorded(log, ToyModel()), recorded(TrafficLog("0"), ToyModel())
    for _ in range(12):
        run(mine, begin(n=8))
        run(other, begin(n=8))
    assert 4 <= len(log.files()) <= 8 + 2 * 2


def test_left_over_files_of_killed_processes_are_deleted(log: TrafficLog) -> None:
    stale = log.folder / ".x.npz.1234.tmp"
    stale.write_bytes(b"half")
    os.utime(stale, (1, 1))
    log.note(max_bytes=1)
    run(recorded(log, ToyModel()), begin(n=8))
    assert not stale.exists() and log.files() == []
    stale.write_bytes(b"half")
    log.clear()
    assert not stale.exists()


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such permissions")
def test_only_this_user_may_read_the_log(log: TrafficLog) -> None:
    run(recorded(log, ToyModel()), begin(n=8))
    (path,) = log.files()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (log.folder, log.folder.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_damaged_settings_mean_off(log: TrafficLog) -> None:
    for text in ("{", "[]", '{"on": true}', '{"on": 1, "draft": "", "target": ""}', '{"x": 1}'):
        (log.folder / logs.SETTINGS).write_text(text)
        assert not log.on and recorder_for("0", "toy", "fp32") is None


def test_nothing_is_written_where_it_is_off(toy_backend: ToyBackend) -> None:  # noqa: F811
    pipeline = specport.load("model", draft="ngram", device="xeon")
    pipeline.generate("abc", max_new_tokens=12)
    assert pipeline.notes == [] and not (cache_root() / "traffic").exists()
    log = TrafficLog("0")
    log.save(Settings(False, "draft", "toy"))
    specport.load("model", device="xeon").generate("abc", max_new_tokens=12)
    assert log.files() == []


def test_load_records_where_it_is_on(toy_backend: ToyBackend, tmp_path: Path) -> None:  # noqa: F811
    log = TrafficLog("0")
    log.save(ON)
    pipeline = specport.load("model", draft="ngram", device="xeon")
    assert any("specport adapt off" in note for note in pipeline.notes)
    result = pipeline.generate("abc", max_new_tokens=12)
    chat = pipeline.chat()
    for text in ("hello", "there"):
        assert chat.send(text).result.text
    chat.close()
    pipeline.close()
    first, *turns = texts(log)
    assert first.tokens.tolist() == [*result.prompt_token_ids, *result.token_ids]
    assert len(turns) == 2 and turns[1].tokens[: len(turns[0].tokens)].tolist() == turns[0].tokens.tolist()
    settings = log.settings()
    assert settings is not None and (settings.model, settings.precision) == ("model", "int8")
