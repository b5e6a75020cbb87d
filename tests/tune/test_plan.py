"""The steps of a tuning: their order, their estimates, and what the budget leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from specport.core.planning.step_costs import StepCosts
from specport.tune import plan
from specport.tune.budget import parse
from specport.tune.hand import CACHED, NAMED, Sibling
from specport.tune.plan import RETRIEVAL, Facts, Step
from specport.tune.trainings import HEAD, PARALLEL, Training

COSTS = StepCosts((1, 32), (64,), ((0.01, 0.08),), measured=True)


def facts(**changes: Any) -> Facts:
    known: dict[str, Any] = {
        "costs": COSTS, "ready": True, "formats": (), "unconverted": 0, "half_gb": 0.0, "siblings": (),
        "early": False,
        "tree": True, "source": "", "prompt_tokens": 32, "max_new_tokens": 92, "num_prompts": 8,
    }  # fmt: skip
    return Facts(**{**known, **changes})


def test_estimates_follow_from_costs() -> None:
    assert plan.answer_s(facts()) == pytest.approx(0.08 + 0.92)
    heat, final = plan.make(facts(), 1800)
    assert heat.seconds == pytest.approx(4 * (2 + 5)) and final.seconds == pytest.approx(8 * (2 + 3))
    first, heat, final = plan.make(facts(costs=None), 1800)
    assert first.kind == "calibrate" and heat.seconds is None and final.seconds is None


def kinds(steps: Sequence[Step]) -> list[str]:
    return [step.kind for step in steps]


def heats(**changes: Any) -> list[str]:
    """Return the first method of each heat, in their order."""
    return [step.methods[0] for step in plan.make(facts(**changes), 1800) if step.kind == plan.HEAT]


def test_each_sibling_is_ranked_and_calibrated_once_and_has_a_heat() -> None:
    one = Sibling("draft-1", "small", "/m", NAMED)
    steps = plan.make(facts(siblings=(one,)), 1800)
    assert kinds(steps) == ["rank", "heat", "calibrate", "heat", "final"] and "small" in steps[0].what
    assert steps[3].methods == ("draft-1", "ngram|draft-1", "suffix|draft-1", "graft(draft-1)")
    ranked = facts(siblings=(one,), promises={"draft-1": 1.0})
    assert kinds(plan.make(ranked, 1800)) == ["heat", "calibrate", "heat", "final"]
    known = facts(siblings=(one,), promises={"draft-1": 1.0}, calibrated=frozenset({"draft-1"}), tree=False)
    steps = plan.make(known, 1800)
    assert kinds(steps) == ["heat", "heat", "final"] and len(steps[1].methods) == 3
    assert kinds(plan.make(facts(early=True), 1800)) == ["heat", "calibrate", "heat", "final"]


def test_what_promises_most_is_tried_first() -> None:
    poor, good = Sibling("draft-1", "poor", "/p", NAMED), Sibling("draft-2", "good", "/g", CACHED)
    both, retrieval = (poor, good), RETRIEVAL[0]
    assert heats(siblings=both) == [retrieval, "draft-1", "draft-2"]  # nothing is known yet
    promises = {"draft-1": 0.9, "draft-2": 1.5}
    assert heats(siblings=both, promises=promises) == ["draft-2", retrieval, "draft-1"]
    assert heats(siblings=both, promises=promises, mtp=True, early=True) == [
        "draft-2", "mtp", retrieval, "early-exit", "draft-1",
    ]  # fmt: skip
    steps = plan.trials(facts(siblings=both, promises=promises))
    assert kinds(steps) == ["calibrate", "heat", "heat", "calibrate", "heat"]
    assert [*steps[0].models.values()] == ["/g"]  # measured before its own heat


def test_weights_for_multi_token_prediction_have_a_heat() -> None:
    steps = plan.make(facts(mtp=True), 1800)
    assert kinds(steps) == ["calibrate", "heat", "heat", "final"]
    assert steps[0].methods == ("mtp",) and steps[1].methods == ("mtp", "ngram|mtp", "suffix|mtp")
    assert kinds(plan.make(facts(mtp=True, calibrated=frozenset({"mtp"})), 1800)) == ["heat", "heat", "final"]


@pytest.mark.parametrize(("training", "asked"), [(HEAD, {"head": True}), (PARALLEL, {"source": "default"})])
def test_a_draft_is_built_where_the_budget_allows(training: Training, asked: dict[str, Any]) -> None:
    *_, build, _ = plan.make(facts(**asked), parse("5m"))
    assert build.kind == "build" and build.training is training and "needs a budget of" in build.skip
    hours = parse("4h")
    *_, build, _ = plan.make(facts(**asked), hours)
    assert not build.skip and build.rough and build.seconds and build.seconds < hours
    tokens = training.tokens(COSTS, hours)
    assert training.least <= tokens <= training.most
    *_, build, _ = plan.make(facts(costs=None, **asked), hours)
    assert build.kind == "build" and build.seconds is None


def test_what_a_step_takes_at_least() -> None:
    known = facts(head=True)
    heat, build, final = plan.make(known, parse("4h"))
    assert plan.least_s(heat, known) == pytest.approx(2 + 5) and plan.least_s(final, known) == pytest.approx(
        2 + 3
    )
    least = plan.least_s(build, known)  # less text than planned will do, where steps before it took longer
    assert (
        build.seconds and least == pytest.approx(20_000 * HEAD.token_s(COSTS)) and least < 0.2 * build.seconds
    )
    assert (
        plan.least_s(build, facts(costs=None)) == build.seconds and plan.least_s(Step("rank", ""), known) == 0
    )


def test_a_head_is_built_first_and_leaves_the_rest_of_the_time() -> None:
    *_, head, parallel, _ = plan.make(facts(head=True, source="default"), parse("50m"))
    assert (head.training, parallel.training) == (HEAD, PARALLEL)
    assert not head.skip and "needs a budget of" in parallel.skip
    *_, head, parallel, _ = plan.make(facts(head=True, source="default"), parse("9h"))
    assert not head.skip and not parallel.skip
    assert head.seconds is not None and head.seconds == pytest.approx(HEAD.most * HEAD.token_s(COSTS))
    # A head that does not fit takes no time from the other.
    *_, head, parallel, _ = plan.make(facts(head=True, source="default"), parse("5m"))
    *_, alone, _ = plan.make(facts(source="default"), parse("5m"))
    assert head.skip and parallel.skip == alone.skip


def test_weights_are_compared_where_the_budget_allows() -> None:
    formats = ("int4", "int8", "int4:128")
    first, *_ = plan.make(facts(formats=formats), 1800)
    assert first.kind == "weights" and not first.skip and first.seconds
    ready = first.seconds
    first, *_ = plan.make(facts(formats=formats), 20)
    assert "the budget leaves" in first.skip
    first, *_ = plan.make(facts(formats=formats, unconverted=3, half_gb=3.0), 1800)
    assert first.seconds is not None and first.seconds > ready + 300 and not first.skip
    # The larger part of the budget is for drafters.
    first, *_ = plan.make(facts(formats=formats, unconverted=3, half_gb=3.0), 1.8 * first.seconds)
    assert "the budget leaves" in first.skip
