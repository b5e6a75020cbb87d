"""The search for a slim verifier's layers: the cost by its formula, proposals, and resuming."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from specport.errors import InvalidInput
from specport.progress import silent

pytest.importorskip("openvino")
pytest.importorskip("optuna")

from specport.quantize.slim.build import Request, build
from specport.quantize.slim.cost import ALPHA, BETA, log_law, margin_violation
from specport.quantize.slim.search import STARTUP, number_skipped, search

GOOD = (2, 4, 5, 7)  # layers that cost nothing
LAYERS = 10


def by_hand(q: Sequence[float], p: Sequence[float]) -> float:
    total = 0.0
    for target, slim in zip(q, p, strict=True):
        total += slim * max(0.0, math.log(1 - ALPHA) + math.log(slim) - math.log(target))
        total += target * max(0.0, math.log(BETA) + math.log(slim) - math.log(target))
    return total


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 6.0])
def test_the_cost_is_the_paper_s_formula(sharpness: float) -> None:
    rng = np.random.default_rng(0)
    logits = (sharpness * rng.normal(size=(2, 5, 7))).astype(np.float32)
    log_q, log_p = log_law(logits[0]), log_law(logits[1])
    want = [by_hand(np.exp(q), np.exp(p)) for q, p in zip(log_q.tolist(), log_p.tolist(), strict=True)]
    assert margin_violation(log_q, log_p).tolist() == pytest.approx(want, rel=1e-4)
    assert sum(want) > 0
    assert not margin_violation(log_q, log_q).any()


def test_within_the_margins_nothing_is_counted() -> None:
    q, p = (
        np.log(np.array([[0.5, 0.5], [0.5, 0.5]], np.float32)),
        np.log(np.array([[0.9, 0.1], [0.99999, 0.00001]], np.float32)),
    )
    assert margin_violation(q, p).tolist() == [0.0, 0.0]  # no probability is doubled
    q = np.log(np.array([[0.1, 0.9]], np.float32))
    assert margin_violation(q, p[:1])[0] == pytest.approx(by_hand([0.1, 0.9], [0.9, 0.1]), rel=1e-5)


def toy_cost(calls: list[tuple[int, ...]]):
    def cost(skipped: tuple[int, ...]) -> tuple[float, float]:
        calls.append(skipped)
        wrong = len({*skipped} - {*GOOD})
        return float(wrong), 1.0 - wrong / len(GOOD)

    return cost


def test_bayesian_proposals_find_what_random_ones_do_not(tmp_path: Path) -> None:
    calls: list[tuple[int, ...]] = []
    found = search(toy_cost(calls), LAYERS, 4, 60, 0, tmp_path / "t.json", silent)
    assert found[0].skipped == GOOD and found[0].cost == 0.0 and len(calls) == len(found) == 60
    assert all(len(s) == 4 and s[0] > 0 and s[-1] < LAYERS - 1 and list(s) == sorted({*s}) for s in calls)
    costs = [len({*s} - {*GOOD}) for s in calls[STARTUP:]]
    assert np.mean(costs[20::2]) < np.mean(costs[21::2]) - 0.4  # every second one is Bayesian


def test_a_stopped_search_goes_on_where_it_was(tmp_path: Path) -> None:
    calls: list[tuple[int, ...]] = []
    told: list[str] = []

    def stopping(skipped: tuple[int, ...]) -> tuple[float, float]:
        if len(calls) == 12:
            raise KeyboardInterrupt
        return toy_cost(calls)(skipped)

    with pytest.raises(KeyboardInterrupt):
        search(stopping, LAYERS, 4, 20, 0, tmp_path / "t.json", silent)
    more: list[tuple[int, ...]] = []
    cost = toy_cost(more)
    found = search(cost, LAYERS, 4, 20, 0, tmp_path / "t.json", lambda what, share: told.append(what))
    assert len(more) == 8 and len(found) == 20 and {*calls, *more} == {trial.skipped for trial in found}
    assert told[0].startswith("mask 13 of 20, best cost")
    # A search that nobody stops finds the same.
    assert search(toy_cost([]), LAYERS, 4, 20, 0, tmp_path / "other.json", silent) == found
    # Trials of another number of layers are none of this search.
    assert len(search(toy_cost(more), LAYERS, 3, 5, 0, tmp_path / "t.json", silent)) == 5


@pytest.mark.parametrize(("layers", "share", "count"), [(28, 0.45, 13), (24, 0.45, 11), (3, 0.4, 1)])
def test_the_share_says_how_many_layers_are_skipped(layers: int, share: float, count: int) -> None:
    assert number_skipped(layers, share) == count
    with pytest.raises(InvalidInput, match="choose another --skip"):
        number_skipped(layers, 0.99)
    with pytest.raises(InvalidInput, match="choose another --skip"):
        number_skipped(2, share)


def test_bad_requests_and_a_missing_package_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for wrong in ({"skip": 0.0}, {"skip": 1.0}, {"trials": 0}, {"tokens": 0}):
        with pytest.raises(InvalidInput, match="it must be"):
            Request(**wrong)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "optuna", None)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"pip install 'specport\[verifier\]'") as error:
        build("nowhere", tmp_path / "out", Request())  # before a model is looked for
    assert "Optuna" in str(error.value)
