"""Measurement and storage of step costs, on a model whose steps take a given time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.built_policies import Built, built  # noqa: F401  (a fixture)
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)
from support.toys.toy_model import ToyModel

import specport
from specport.calibration.measure import Measured, measure, rising, typical
from specport.cli import main
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Capabilities, Model, Row, StepOutput
from specport.errors import ModelError
from specport.runtime.stored import measurements


class Timed(ToyModel):
    """Moves a clock: 1 s a step, 0.1 s a token, 1 ms a cached token, 0.5 s for a change of width."""

    def __init__(self, stall_every: int = 0, **options: int) -> None:
        super().__init__(**options)
        self.now, self._width, self._stall, self._count = 0.0, 0, stall_every, itertools.count(1)

    def step(self, rows: Sequence[Row]) -> StepOutput:
        width, context = len(rows[0].block), rows[0].handle.length
        self.now += 1.0 + 0.1 * width + 0.001 * context + 0.5 * (width != self._width)
        if self._stall and next(self._count) % self._stall == 0:
            self.now += 30.0
        self._width = width
        return super().step(rows)


def test_costs_come_out_as_they_are() -> None:
    model = Timed(max_context=4096)
    found = measure(model, budget_s=1.0, clock=lambda: model.now)
    costs = found.costs
    assert costs.measured and costs.contexts == (64, 512, 2048)
    for context, row in zip(costs.contexts, costs.seconds, strict=True):
        expected = [1.0 + 0.1 * w + 0.001 * context for w in costs.widths]
        assert row == pytest.approx(expected)
    assert costs.change == pytest.approx(0.5 / costs.seconds[0][0])
    assert not found.outliers and found.rounds == 5
    assert model.num_open == 0


def test_stalls_are_named_and_do_not_count() -> None:
    model = Timed(stall_every=23, max_context=4096)
    found = measure(model, budget_s=1.0, clock=lambda: model.now)
    assert found.costs.seconds[0] == pytest.approx([1.064 + 0.1 * w for w in found.costs.widths])
    assert found.outliers and all(o.seconds > 20 and o.median < 8 for o in found.outliers)


def test_the_budget_buys_rounds() -> None:
    model = Timed(max_context=4096)
    assert measure(model, budget_s=6000.0, clock=lambda: model.now).rounds > 10


def test_contexts_that_do_not_fit_are_left_out() -> None:
    for limit, contexts in ((600, (64, 512)), (80, (48,))):
        model = Timed(max_context=limit)
        assert measure(model, budget_s=0.0, clock=lambda model=model: model.now).costs.contexts == contexts


def test_a_static_model_is_measured_at_its_buckets() -> None:
    model = Timed(max_context=4096)
    model.capabilities = Capabilities(buckets=(1, 8, 64))
    assert measure(model, budget_s=0.0, clock=lambda: model.now).costs.widths == (
        1,
        8,
        64,
    )


def test_a_lone_token_costs_what_it_is_padded_to() -> None:
    model = Timed(max_context=4096)
    model.capabilities = Capabilities(min_width=2)
    found = measure(model, budget_s=0.0, clock=lambda: model.now)
    assert found.costs.widths[:3] == (1, 2, 3)
    assert found.costs.seconds[0][:3] == pytest.approx([1.264, 1.264, 1.364])
    assert len(found.spread[0]) == len(found.costs.widths)
    assert 1 not in model.widths


def test_a_slow_spell_of_the_machine_is_not_taken_for_slow_widths() -> None:
    # Two rounds of five were twice as slow, and a stall hit one step of another.
    times = [[w * f for f in (1.0, 2.0, 1.0, 2.0, 1.0)] for w in (1.0, 1.2, 2.0)]
    times[1][2] = 9.0
    assert typical(times) == pytest.approx([1.0, 1.2, 2.0])


def test_rising_pools_what_falls() -> None:
    assert rising([1.0, 3.0, 2.0, 4.0]) == [1.0, 2.5, 2.5, 4.0]
    assert rising([3.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    assert rising([1.0, 2.0]) == [1.0, 2.0]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> measurements.Calibration:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path))
    costs = StepCosts((1, 4), (64, 512), ((0.1, 0.2), (0.2, 0.3)), 0.125, measured=True)
    return measurements.Calibration(costs, {"model": "toy"})


def test_what_is_kept_is_found_again(kept: measurements.Calibration) -> None:
    measurements.save("abc", kept)
    assert measurements.find("abc") == kept
    assert measurements.find("other") is None and measurements.find("") is None


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"format": 99}', '{"format": 1, "about": {}, "costs": {"widths": []}}']
)
def test_a_damaged_file_counts_as_none(kept: measurements.Calibration, damage: str) -> None:
    measurements.save("abc", kept).write_text(damage)
    assert measurements.find("abc") is None


def test_an_unwritable_cache_is_said(kept: measurements.Calibration, tmp_path: Path) -> None:
    (tmp_path / "calibration").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot write"):
        measurements.save("abc", kept)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for tenths of a second."""
    import specport.calibration.calibrate as module

    def measure_little(model: Model, **options: Any) -> Measured:
        return measure(model, widths=(1, 2, 4), contexts=(16,), budget_s=0, progress=options["progress"])

    monkeypatch.setattr(module, "measure", measure_little)


@pytest.mark.usefixtures("short")
def test_calibrate_and_then_load_plans_with_it(
    toy_backend: ToyBackend,  # noqa: F811
    built: list[Built],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["calibrate", "--model", "big", "--draft", "ngram|small"]) == 0
    out, err = capsys.readouterr()
    assert "target big (int8)" in out and "draft small (int4:128)" in out
    assert "context 16" in out and "the loop adds" in out and "saved to" in out
    assert "steps at 16 tokens" in err
    assert toy_backend.loaded == ["big", "small"]

    specport.load("big", draft="ngram|small")
    specport.load("other", draft="ngram")
    planned, other = built
    assert planned.costs is not None and planned.costs.measured
    assert [costs and costs.measured for costs in planned.draft_costs] == [None, True]
    assert other.costs is not None and not other.costs.measured


@pytest.mark.usefixtures("short", "toy_backend")
def test_calibrate_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    plot = tmp_path / "costs.svg"
    assert main(["calibrate", "--json", "--quiet", "--plot", str(plot)]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["role"] == "target" and report["widths"] == [1, 2, 4]
    assert len(report["seconds"]) == 1 and report["loop_s"] > 0
    assert plot.read_text(encoding="utf-8").count("<svg") == 1


@pytest.mark.usefixtures("short")
def test_a_backend_without_keys_keeps_nothing(
    toy_backend: ToyBackend,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    toy_backend.keyed = False
    assert main(["calibrate", "--quiet"]) == 0
    assert "saved to" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "x.txt"], "end in .svg"),
        (["--plot", "no/such/folder/x.svg"], "no folder"),
        (["--draft", "auto"], "no draft model"),
        (["--threads", "0"], "threads is 0"),
        (["--device", "toaster"], "unknown device"),
    ],
)
def test_bad_input(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *arguments]) == 2
    assert words in capsys.readouterr().err
