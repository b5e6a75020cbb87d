"""The best exit of a target: measured on its own text, stored, and found by `specport.load`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.built_policies import Built, built  # noqa: F401  (a fixture)
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)
from support.toys.toy_model import ToyExitModel

import specport
from specport.calibration import exits
from specport.calibration.target_text import Text, along
from specport.cli import main
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Block, Row
from specport.drafters.model.drafter import EarlyExitDrafter
from specport.errors import DeviceError, InvalidInput, ModelError
from specport.progress import silent
from specport.runtime.devices.registry import LoadOptions
from specport.runtime.stored import measurements

LAYERS = 8


@pytest.fixture
def model_folder(toy_backend: ToyBackend, tmp_path: Path) -> Path:  # noqa: F811
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": LAYERS}))
    return tmp_path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for tenths of a second."""
    from functools import partial

    import specport.calibration.calibrate as module
    from specport.calibration.measure import measure

    monkeypatch.setattr(module, "measure", partial(measure, widths=(1, 2), contexts=(16,)))
    monkeypatch.setattr(module, "TARGET_S", 0.0)
    monkeypatch.setattr(module, "DRAFT_S", 0.0)


@pytest.mark.parametrize("count", [2, 3, 9, 12, 30, 61])
def test_candidates_leave_layers_to_save(count: int) -> None:
    layers = exits.candidates(count)
    assert layers == sorted({*layers}) and 1 <= len(layers) <= 9
    assert layers[0] == 1 and layers[-1] < count


def test_the_exit_with_most_tokens_a_second_is_best() -> None:
    target = StepCosts((1, 2, 4, 8), (0,), ((1.0, 1.0, 1.0, 1.0),), measured=True)
    models = {layer: ToyExitModel(exit_noise=noise) for layer, noise in ((1, 5.0), (2, 0.3), (3, 0.2))}
    text = Text((1, 2), tuple(models[1].greedy([1, 2], 30)))
    found = exits.compare(models.__getitem__, [1, 2, 3], [text], target, silent)
    assert [tried.layer for tried in found] == [1, 2, 3]
    assert found[0].agreement < found[1].agreement <= found[2].agreement
    dear = [exits.Exit(t.layer, s, t.agreement, exits.expected_speed(t.agreement, s, target))
            for t, s in zip(found, (0.01, 0.05, 2.0), strict=True)]  # fmt: skip
    assert exits.best(dear).layer == 2
    hopeless = [exits.Exit(1, 1.0, 0.1, 1.0), exits.Exit(2, 1.0, 0.2, 1.0)]
    assert exits.best(hopeless).layer == 2


def test_first_layers_are_read_and_timed_like_a_draft() -> None:
    model = ToyExitModel(exit_noise=0.5)
    first = exits.FirstLayers(model)
    ((output, answer),) = along(first, [Text((1, 2, 3), (4, 5, 6))])
    expected = [model.early[a, b] for a, b in ((2, 3), (3, 4), (4, 5))]
    assert answer == (4, 5, 6) and (output.logits == expected).all()
    assert model.num_open == 0 and first.early_exit is None
    handle = first.open()
    first.step([Row(handle, Block.chain([1]))])
    with pytest.raises(AssertionError):
        first.commit(handle, (0,))  # what was drafted cannot be kept


@pytest.mark.usefixtures("model_folder", "short")
def test_calibrate_finds_an_exit_and_run_uses_it(
    capsys: pytest.CaptureFixture[str],
    built: list[Built],  # noqa: F811
) -> None:
    with pytest.raises(InvalidInput, match="specport calibrate --draft early-exit"):
        specport.load("big", draft="early-exit")
    assert main(["calibrate", "--model", "big", "--draft", "early-exit", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "early exit big (int8, exit after layer" in out and "agreement" in out and "used" in out
    specport.load("big", draft="ngram|early-exit")
    (planned,) = built
    assert planned.costs is not None and planned.costs.measured
    assert isinstance(planned.drafters[1], EarlyExitDrafter)
    assert planned.draft_costs[1] and planned.draft_costs[1].measured


@pytest.mark.usefixtures("model_folder", "short")
def test_a_named_exit_is_only_measured(
    capsys: pytest.CaptureFixture[str],
    built: list[Built],  # noqa: F811
) -> None:
    assert main(["calibrate", "--model", "big", "--draft", "early-exit:3", "--json", "--quiet"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [(r["role"], r["exit_layer"], r["exits"]) for r in reports] == [
        ("target", 0, []), ("target", 3, []), ("early exit", 3, []),
    ]  # fmt: skip
    specport.load("big", draft="early-exit:3")
    (costs,) = built[-1].draft_costs
    assert costs is not None and costs.measured
    with pytest.raises(InvalidInput, match="the best exit layer of big"):
        specport.load("big", draft="early-exit")


def test_devices_without_early_exit_say_so(
    monkeypatch: pytest.MonkeyPatch,
    toy_backend: ToyBackend,  # noqa: F811
) -> None:
    plain = toy_backend.load
    monkeypatch.setattr(
        toy_backend, "load", lambda files, options: plain(files, LoadOptions(options.profile)), raising=True
    )
    with pytest.raises(DeviceError, match="cannot exit early"):
        specport.load("big", draft="early-exit:2")


def test_a_folder_that_does_not_say_its_layers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="num_hidden_layers"):
        exits.num_layers(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"num_hidden_layers": 7}}')
    assert exits.num_layers(tmp_path) == 7


def test_a_damaged_or_strange_record_counts_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path))
    path = measurements.save_exit("abc", "xeon", 5)
    assert measurements.find_exit("abc", "xeon") == 5
    assert measurements.find_exit("abc", "cuda") is None and measurements.find_exit("abd", "xeon") is None
    for content in ("", "[]", '{"format": 1, "exit_layer": "5"}', '{"format": 1, "exit_layer": 0}'):
        path.write_text(content)
        assert measurements.find_exit("abc", "xeon") is None


def test_a_bench_method_may_exit_early(model_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "a", "category": "x", "turns": ["abc abc"]}\n')
    from specport.bench.run import bench

    report = bench(
        prompts, tmp_path / "out", methods=["early-exit:4@fixed=3"], max_new_tokens=16, precision="int8"
    )
    figures = report.table["early-exit:4@fixed=3"]["all"]
    assert figures.same == 1 and figures.mean_acceptance_length is not None
