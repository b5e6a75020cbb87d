"""Graft's thresholds on toy models: their choice, their storage, and their use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.built_policies import Built, built  # noqa: F401  (a fixture)
from support.toys.toy_backend import Tokenizer, ToyBackend, toy_backend  # noqa: F401  (a fixture)
from support.toys.toy_model import ToyModel

import specport
from specport.calibration import calibrate as module
from specport.calibration import grafts
from specport.cli import main
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.drafters.context import DraftModel
from specport.drafters.tree.graft import (
    CHECKPOINTS,
    VARIANTS,
    Checkpoint,
    DraftedRound,
    GraftDrafter,
    Variant,
)
from specport.drafters.tree.graft_thresholds import ALWAYS, MIN_ROUNDS, NEVER, Choice
from specport.drafters.tree.level_proposer import ModelLevels
from specport.progress import silent
from specport.runtime.devices.profiles import Profile, load_profile
from specport.runtime.stored import measurements
from specport.text import builtin_prompts

KEPT = Variant((Checkpoint(1, NEVER, 0.2), Checkpoint(3, 0.4, 0.5), Checkpoint(6, ALWAYS, 0.75)))


VOCAB = 60  # so that texts do not repeat: else retrieval guesses all of them


def flat(seconds: float) -> StepCosts:
    return StepCosts((1, 64), (0,), ((seconds, seconds),), measured=True)


def found(
    draft_s: float, target: ToyModel | None = None, profile: Profile | None = None
) -> tuple[Choice, ...]:
    """Return the choices for a target whose steps take a second at any width."""
    target = target or ToyModel(VOCAB, max_context=400)
    model = ToyModel(VOCAB, noise=0.2, max_context=400)
    draft = DraftModel(model, Tokenizer(), "toy", flat(draft_s))  # type: ignore[arg-type]
    profile = profile or load_profile("torch-cpu")
    choices = grafts.calibrate(target, Tokenizer(), flat(1.0), draft, profile, silent)  # type: ignore[arg-type]
    assert target.num_open == model.num_open == 0
    return choices


CHAINS = load_profile("core-ultra-npu")  # whose policy is "fixed"


def test_a_cheap_draft_is_not_stopped_and_a_costly_one_early() -> None:
    cheap, costly = found(1e-6, profile=CHAINS)[0], found(30.0, profile=CHAINS)[0]
    assert cheap.learnt and costly.learnt
    assert cheap.checkpoint.level == costly.checkpoint.level == 1
    assert cheap.checkpoint.threshold < 0.5 and cheap.stopped < 0.2
    assert costly.checkpoint.threshold > 0.9 and costly.stopped > 0.8
    assert costly.tokens_per_second > 1.5 * costly.never_tokens_per_second
    assert cheap.tokens_per_second >= cheap.never_tokens_per_second


def test_a_planner_takes_part_in_the_recordings() -> None:
    cheap, costlier, costly = (found(seconds)[0] for seconds in (1e-6, 0.1, 30.0))
    assert cheap.learnt and costlier.learnt
    assert cheap.checkpoint.threshold < costlier.checkpoint.threshold
    # A planner hardly ever asks this draft, so there is nothing to learn.
    assert not costly.learnt and costly.checkpoint == CHECKPOINTS[0]
    assert costly.num_rounds < MIN_ROUNDS <= min(cheap.num_rounds, costlier.num_rounds)


def test_levels_and_shares_stay_as_they_are() -> None:
    for choice, before in zip(found(0.1), CHECKPOINTS, strict=True):
        assert (choice.checkpoint.level, choice.checkpoint.share) == (before.level, before.share)


def test_a_profile_that_drafts_short_chains_is_calibrated_on_those() -> None:
    """Checkpoints behind the last level are never reached and stay as they are."""
    target = ToyModel(VOCAB, tree=False, max_context=400)
    choices = found(30.0, target, CHAINS)
    assert [choice.learnt for choice in choices] == [True, True, False]
    assert choices[2].checkpoint == CHECKPOINTS[2] and choices[2].num_rounds == 0
    assert max(target.widths[-10:]) <= 5  # the root token and four drafted


def test_prompts_without_room_are_left_out() -> None:
    choices = found(0.1, ToyModel(VOCAB, max_context=60))
    assert tuple(choice.checkpoint for choice in choices) == CHECKPOINTS


@pytest.mark.parametrize("ends", [False, True])
def test_a_recording_ends_where_the_answer_does(ends: bool) -> None:
    target, draft = ToyModel(), ToyModel(noise=0.4)
    text = target.greedy([1, 2], 20)
    eos = frozenset(text[-1:]) if ends else frozenset()

    def make(variant: Variant, record: Callable[[DraftedRound], None]) -> FirstProposal:
        graft = GraftDrafter(ModelLevels(draft, target.vocab_size), (), variant, record=record)
        return FirstProposal([graft], lambda: Fixed(6))

    seen: list[float] = []
    rounds = grafts.record(target, make, Variant(), [[1, 2]], eos, 6, lambda what, share: seen.append(share))
    committed = sum(1 + r.accepted for r in rounds)
    if ends:
        length = text.index(text[-1]) + 1
        assert length - 1 <= committed < length + 6
    else:
        # Up to the round that passes the last token; none of them was cut at the end of the text.
        assert grafts.TOKENS - 1 <= committed < grafts.TOKENS + 6
        assert seen[-1] == 1.0
    assert seen == sorted(seen)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("cache")
def test_checkpoints_are_kept_and_found() -> None:
    pair = measurements.Pair((1, 2, 5), None, KEPT)
    path = measurements.save_pair("target", "draft", pair)
    assert path is not None and measurements.find_pair("target", "draft") == pair
    assert measurements.save_pair("target", "draft", measurements.Pair()) == path
    assert measurements.find_pair("target", "draft") == measurements.Pair()


@pytest.mark.usefixtures("cache")
def test_a_file_of_an_earlier_version_has_none() -> None:
    path = measurements.save_pair("target", "draft", measurements.Pair((1, 2), None, KEPT))
    assert path is not None
    table = json.loads(path.read_text())
    del table["graft"]
    path.write_text(json.dumps(table))
    assert measurements.find_pair("target", "draft") == measurements.Pair((1, 2))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "wrong",
    [
        [], 7, "x", [{}], [{"level": 0, "threshold": 0.5, "share": 0.5}],
        [{"level": 1, "threshold": float("nan"), "share": 0.5}],
        [{"level": 1, "threshold": 0.5, "share": 1.5}],
        [{"level": 2, "threshold": 0.5, "share": 0.5}, {"level": 1, "threshold": 0.5, "share": 0.5}],
    ],
)  # fmt: skip
def test_damaged_checkpoints_count_as_nothing(wrong: object) -> None:
    path = measurements.save_pair("target", "draft", measurements.Pair((1, 2), None, KEPT))
    assert path is not None
    path.write_text(json.dumps({**json.loads(path.read_text()), "graft": wrong}))
    assert measurements.find_pair("target", "draft") == measurements.Pair()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for tenths of a second, on three short prompts."""
    measure = module.measure
    monkeypatch.setattr(
        module, "measure", lambda model, **rest: measure(model, widths=(1, 2), contexts=(16,), budget_s=0)
    )
    monkeypatch.setattr(builtin_prompts, "PROMPTS", ("abc", "cab", "fed"))


# Drafts chains of a fixed length, whatever a toy's steps cost.
NPU = ("--device", "core-ultra-npu-emulated")


def grafted(policy: Built) -> Variant:
    drafter = policy.drafters[-1]
    assert isinstance(drafter, GraftDrafter)
    return drafter.variant


@pytest.mark.usefixtures("short")
def test_calibrate_prints_and_keeps_what_load_uses(
    toy_backend: ToyBackend,  # noqa: F811
    built: list[Built],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    specport.load("big", draft="graft(small)")
    assert grafted(built[-1]) == VARIANTS["graft"]
    toy_backend.loaded.clear()
    assert main(["calibrate", "--model", "big", "--draft", "ngram|graft(small)", *NPU]) == 0
    # The target makes way for the draft's heads and is there again for the trees.
    assert toy_backend.loaded == ["big", "small", "big"]
    out, err = capsys.readouterr()
    assert "recording grafted trees" in err
    lines = out[out.index("graft: level") :].splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "6"]
    assert lines[3].endswith("too few rounds: unchanged")

    kept = measurements.find_pair("big-target", "0").graft
    assert kept is not None and kept != VARIANTS["graft"]
    for options in ({}, {"policy": "fixed", "num_draft_tokens": 4}):
        pipeline = specport.load("big", draft="ngram|graft(small)", **options)  # type: ignore[arg-type]
        assert grafted(built[-1]) == kept
    result = pipeline.generate("abc", max_new_tokens=24)
    assert result.token_ids == ToyModel().greedy(Tokenizer().encode("abc"), 24)
    specport.load("other", draft="graft(small)")
    assert grafted(built[-1]) == VARIANTS["graft"]


@pytest.mark.usefixtures("short", "toy_backend")
def test_the_plain_draft_leaves_the_checkpoints_unless_its_head_changes() -> None:
    for head, left in ((None, KEPT), ((1, 2), None)):
        measurements.save_pair("big-target", "0", measurements.Pair(head, None, KEPT))
        module.calibrate("big", draft="small")
        assert measurements.find_pair("big-target", "0").graft == left


@pytest.mark.usefixtures("short", "toy_backend")
def test_calibrate_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--json", "--quiet", "--model", "big", "--draft", "graft(small)", *NPU]) == 0
    target, draft = json.loads(capsys.readouterr().out)
    assert target["graft"] == []
    assert [c["level"] for c in draft["graft"]] == [1, 2, 6]
    first = draft["graft"][0]
    assert first["learnt"] and first["rounds"] > 20
    assert first["tokens_per_second"] >= first["never_tokens_per_second"] > 0


@pytest.mark.usefixtures("short", "toy_backend")
def test_a_draft_of_another_tokenizer_is_refused_before_it_is_loaded(
    toy_backend: ToyBackend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Tokenizer, "mismatch", lambda self, other: "token 5 is 'a' and 'b'")
    assert main(["calibrate", "--quiet", "--model", "big", "--draft", "graft(small)"]) == 2
    assert "token 5" in capsys.readouterr().err
    assert toy_backend.loaded == ["big"]


@pytest.mark.parametrize("draft", ["graft()", "graft(ngram)", "graft(auto)"])
def test_a_graft_without_a_model_is_refused(draft: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--quiet", "--draft", draft]) == 2
    assert "draft expression" in capsys.readouterr().err
