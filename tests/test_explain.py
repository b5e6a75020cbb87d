"""The account of one answer: parts of the time, what each drafter brought, and the verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.generations import begin, run
from support.toys import toy_pipeline
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

import specport
from specport.cli import main
from specport.cli.run.explain import lines
from specport.core.engine import Engine
from specport.core.metrics import Metrics
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import DrafterCounts, DraftingCounts, TierCounts
from specport.explain import explain, plain_step


def answer(**changes: Any) -> Metrics:
    """21 tokens in 1 s; 10 steps of 0.06 s with a draft, which cost 0.2 s; a plain step takes 0.05 s."""
    own = DrafterCounts(12, seconds=0.2, reading_s=0.05, rounds=10, drafted=20, accepted=10, verify_s=0.6)
    metrics = Metrics(
        num_output_tokens=21, num_steps=10, num_drafts=10, num_draft_tokens=20, num_accepted_tokens=10,
        queue_s=0.01, ttft_s=0.5, decode_s=1.0, draft_s=0.25, verify_s=0.6,
        drafting=DraftingCounts({"small": own}, rounds=10, plain_s=0.5),
    )  # fmt: skip
    for name, value in changes.items():
        setattr(metrics, name, value)
    return metrics


def test_the_parts_are_all_of_the_time() -> None:
    account = explain(answer())
    assert {part.name: round(part.seconds, 6) for part in account.parts} == {
        "waiting for room": 0.01,
        "reading the prompt, target": 0.49,
        "reading the prompt, small": 0.05,
        "drafting, small": 0.15,
        "planning": 0.05,
        "verifying": 0.6,
        "sampling and the rest": 0.15,
    }
    assert sum(part.seconds for part in account.parts) == pytest.approx(1.5)
    assert sum(part.share for part in account.parts) == pytest.approx(1.0)


def test_the_parts_are_all_of_the_time_of_a_batch_with_tiers() -> None:
    """This text asked the target for 0.1 s, and waited 0.2 s more while others did."""
    account = explain(answer(lossy="tiered:0.6,0.3", tiers=TierCounts(10, 2, 10, slim_s=0.3, full_s=0.1)))
    found = {part.name: part.seconds for part in account.parts}
    assert found["verifying, slim verifier"] == pytest.approx(0.3)
    assert found["verifying, target"] == pytest.approx(0.3)
    assert sum(found.values()) == pytest.approx(1.5)
    assert account.plain_step_s == pytest.approx(0.05)


def test_a_draft_that_is_accepted_whole_without_a_token_behind_it_saves_a_step_less() -> None:
    tiers = TierCounts(10, 2, 10, open_rounds=4, slim_s=0.5, full_s=0.1)
    account = explain(answer(lossy="tiered:0.6,0.3", tiers=tiers, num_output_tokens=17))
    (small,) = account.drafters
    assert small.saved_s == pytest.approx((10 - 4) * (0.05 + 0.015))
    assert account.plain_s is not None and small.net_s is not None
    planning = 0.05  # the only time that is not the drafter's
    assert small.net_s - planning == pytest.approx(account.plain_s - account.decode_s)
    assert any("but for one in each of the 4 drafts" in line for line in lines(account))


def test_what_a_drafter_brought() -> None:
    account = explain(answer())
    (small,) = account.drafters
    assert account.plain_step_s == pytest.approx(0.05)
    assert small.saved_s == pytest.approx(10 * (0.05 + 0.015))  # a step, and the loop around it
    assert small.wider_s == pytest.approx(0.6 - 10 * 0.05)
    assert small.net_s == pytest.approx(0.65 - 0.1 - 0.2)
    assert account.plain_s == pytest.approx(20 * 0.065) and account.speed_up == pytest.approx(1.3)
    assert account.verdict.startswith("Speculation paid: 1.00 s") and "1.30 times" in account.verdict


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decode_s": 2.0, "verify_s": 1.6}, "did not pay"),
        ({"decode_s": 1.3, "verify_s": 0.9}, "no difference"),
        ({"num_drafts": 0}, "Nothing was drafted"),
        ({"num_output_tokens": 1}, "too short"),
    ],
)
def test_verdicts(changes: dict[str, float], words: str) -> None:
    assert words in explain(answer(**changes)).verdict


def test_where_a_plain_step_is_not_known_nothing_is_claimed() -> None:
    metrics = answer()
    metrics.drafting.rounds = 0
    account = explain(metrics)
    assert account.plain_s is None and account.speed_up is None and account.drafters[0].net_s is None
    assert "10 of 20 steps" in account.verdict and "not known" in account.verdict
    metrics.num_steps, metrics.verify_s = 15, 0.85  # five steps without a draft
    assert plain_step(metrics) == pytest.approx(0.05)


@pytest.mark.parametrize("planned", [True, False])
def test_drafters_are_counted_as_they_work(planned: bool) -> None:
    target = ToyModel(step_seconds=0.001)
    draft, poor = ToyDrafter(ToyModel(noise=0.2), name="good"), ToyDrafter(ToyModel(seed=9), name="poor")
    costs = StepCosts((1, 8), (64,), ((0.001, 0.0011),), measured=True)
    engine = Engine(target, Planner([Source(poor), Source(draft)], costs, target.capabilities) if planned
                    else FirstProposal([draft, poor], lambda: Fixed(4)))  # fmt: skip
    generation = begin(n=60)
    assert run(engine, generation) == [target.greedy(generation.tokens[: generation.num_prompt_tokens], 60)]
    metrics, by = generation.metrics, generation.metrics.drafting.by
    assert sum(own.rounds for own in by.values()) == metrics.num_drafts > 0
    assert sum(own.accepted for own in by.values()) == metrics.num_accepted_tokens > 0
    assert sum(own.drafted for own in by.values()) == metrics.num_draft_tokens
    assert by["good"].accepted > 0 and by["good"].calls >= by["good"].rounds
    assert 0 < sum(own.seconds for own in by.values()) <= metrics.draft_s
    assert (metrics.drafting.rounds > 0) == planned
    if planned:
        assert 0.0005 < metrics.drafting.plain_s / metrics.drafting.rounds < 0.02
        assert by["poor"].calls == by["good"].calls  # both are asked each time, as neither has a model
    else:
        assert "poor" not in by  # the first always has a proposal


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specport, "load", toy_pipeline.load, raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.mark.usefixtures("toy")
def test_run_explains_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "abcabcabc", "--max-new-tokens", "60", "--explain", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    lines = err.splitlines()
    assert lines[0].split() == ["where", "the", "time", "went", "ms", "share"]
    assert any(line.startswith("drafting, ngram") for line in lines)
    assert any(line.startswith("ngram ") for line in lines) and lines[-1].startswith("Speculation ")


@pytest.mark.usefixtures("toy")
def test_run_explains_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "abcabcabc", "--max-new-tokens", "60", "--explain", "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["explain"]["drafters"][0]["drafter"] == "ngram"
    assert report["explain"]["drafters"][0]["accepted"] == report["metrics"]["num_accepted_tokens"]
    assert report["metrics"]["drafting"]["by"]["ngram"]["calls"] > 0
