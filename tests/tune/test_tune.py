"""`specport tune` on toy models: what is tried, what is kept, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)

import specport
from specport.bench.record import Record
from specport.calibration.measure import Measured, measure
from specport.cli import main
from specport.core.ports import Model
from specport.models.source import ModelFiles
from specport.runtime.stored import tuned
from specport.tune.trainings import HEAD, PARALLEL, Training
from specport.tune.weights import Weights

LINES = [
    {"id": i, "category": category, "turns": [f"abcab {category} {i}"]}
    for i, category in enumerate(["qa", "qa", "rag", "qa", "rag", "rag"])
]
QUICK = ["--quiet", "--device", "xeon", "--max-new-tokens", "24", "--budget", "60s"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure steps for tenths of a second."""
    import specport.calibration.calibrate as module

    def measure_little(model: Model, **options: Any) -> Measured:
        return measure(model, widths=(1, 2, 4, 8), contexts=(16,), budget_s=0, progress=options["progress"])

    monkeypatch.setattr(module, "measure", measure_little)


@pytest.fixture
def tune(toy_backend: ToyBackend, tmp_path: Path) -> list[str]:  # noqa: F811
    toy_backend.step_seconds = 0.004
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, LINES)), encoding="utf-8")
    return ["tune", *QUICK, "--prompts", str(prompts)]


def report(command: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*command, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_choice_is_what_auto_uses(
    tune: list[str],
    toy_backend: ToyBackend,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draft = tmp_path / "small"
    draft.mkdir()
    toy_backend.step_seconds = 0.02  # what drafting costs in Python must not matter
    tune = [*tune, "--max-new-tokens", "16", "--per-category", "2"]
    found = report([*tune, "--draft", str(draft)], capsys)
    tried = {each["name"]: each for each in found["verdict"]["tried"]}
    assert {"ngram", "suffix", "recycle", "suffix|recycle", "small", "ngram|small", "graft(small)"} <= {
        *tried
    }
    assert all(each["heat"]["same"] == each["heat"]["prompts"] >= 1 for each in tried.values())
    assert sum(each["final"] is not None for each in tried.values()) in (1, 2, 3)
    chosen = found["verdict"]["draft"]
    kept = tuned.find(None, "xeon").choices["int8"]
    assert kept.draft == chosen and kept.speed_up == found["verdict"]["speed_up"]

    with specport.load(device="xeon") as pipeline:
        assert pipeline.notes[0].startswith(f"drafters by specport tune: {chosen}") or chosen == "none"
        assert (pipeline.draft_name == "none") == (chosen == "none")
    with specport.load(device="xeon", draft="ngram") as pipeline:
        assert pipeline.draft_name == "ngram" and pipeline.notes == []
    assert main(["tune", "--forget", "--device", "xeon"]) == 0
    assert "forgotten" in capsys.readouterr().err
    with specport.load(device="xeon") as pipeline:
        assert pipeline.draft_name == "suffix" and pipeline.notes == []
    assert main(["tune", "--undo", "--device", "xeon"]) == 0
    assert "nothing was tuned" in capsys.readouterr().err


def test_the_draft_that_promises_most_is_tried_first(
    tune: list[str],
    toy_backend: ToyBackend,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from specport.runtime import loading

    def resolve(spec: str | None, **options: Any) -> ModelFiles:
        name = Path(spec or "toy").name
        return ModelFiles(tmp_path, name, str(options["precision"]), spec or "default", name)

    def dry_run() -> list[str]:
        steps = json.loads(_dry(tune, capsys))
        return [step["kind"] for step in steps if step["kind"] in ("rank", "heat")]

    monkeypatch.setattr(loading, "resolve", resolve)
    monkeypatch.setattr("specport.tune.hand.is_ready", lambda *rest: True)
    toy_backend.step_seconds, toy_backend.noise = 0.02, {"poor": 9.0, "good": 0.05}
    for name in ("poor", "good"):
        (tmp_path / name).mkdir()
        tune += ["--draft", str(tmp_path / name)]
    assert dry_run() == ["rank", "heat", "heat", "heat"]
    found = report([*tune, "--per-category", "1", "--max-new-tokens", "16"], capsys)
    assert found["promises"]["good"] > 1.5 and found["promises"]["poor"] < 1.1
    loaded = [name for name in toy_backend.loaded if name != "toy"]
    assert loaded[:3] == ["poor", "good", "good"]  # ranked as they were named, tried by what they promise
    order = [each["name"] for each in found["verdict"]["tried"]]
    assert {"good", "poor", "ngram"} <= {*order}
    assert dry_run() == ["heat", "heat", "heat"]  # what a draft promises is kept
    assert main([*tune, "--per-category", "1", "--max-new-tokens", "16"]) == 0
    assert "expected of draft models alone, before they were tried: good " in capsys.readouterr().out


def _dry(tune: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*tune, "--no-build", "--dry-run", "--json"]) == 0
    return capsys.readouterr().out


def test_a_stopped_tuning_goes_on(
    tune: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    added, add = [], Record.add

    def counted(self: Record, job: Any, *rest: Any) -> None:
        if len(added) == stop_at:
            raise KeyboardInterrupt
        added.append((self.folder.name, job.prompt.id, job.method, job.n))
        add(self, job, *rest)

    monkeypatch.setattr(Record, "add", counted)
    stop_at = 9
    assert main(tune) == 130
    err = capsys.readouterr().err
    assert "the same command goes on" in err and "Traceback" not in err
    assert tuned.find(None, "xeon").choices == {} and len(added) == 9
    stop_at = -1
    assert main(tune) == 0
    assert len({*added}) == len(added) > 9  # nothing twice
    before = len(added)
    assert main(tune) == 0 and len(added) == before  # all is there


def test_two_tunings_do_not_disturb_each_other(
    tune: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache" / "tune").mkdir(parents=True)
    with FileLock(str(tmp_path / "cache" / "tune" / "lock")):
        assert main(tune) == 2
    assert "another specport tune is running" in capsys.readouterr().err


def test_other_settings_are_measured_anew(
    tune: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(tune) == 0
    folders = {path.name for path in (tmp_path / "cache" / "tune").iterdir()}
    assert main([*tune, "--max-new-tokens", "25"]) == 0
    assert len({path.name for path in (tmp_path / "cache" / "tune").iterdir()} - folders) >= 1
    out = capsys.readouterr().out
    assert "chosen: --draft " in out and "why: " in out and "plain decoding" in out


def test_a_draft_that_cannot_be_used_does_not_stop_the_others(
    tune: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from specport.errors import ModelError
    from specport.runtime import loading

    def resolve(spec: str | None, **options: Any) -> ModelFiles:
        if spec == "org/broken":
            raise ModelError("there is no such model")
        return ModelFiles(tmp_path, spec or "toy", str(options["precision"]), spec or "default", "0")

    monkeypatch.setattr(loading, "resolve", resolve)
    found = report([*tune, "--draft", "org/broken"], capsys)
    assert any(why == "there is no such model" for why in found["untried"].values())
    assert {each["name"] for each in found["verdict"]["tried"]} >= {"ngram", "suffix"}


def test_a_model_that_exits_early_is_tried_with_its_best_exit(
    tune: list[str],
    toy_backend: ToyBackend,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 4}', encoding="utf-8")
    monkeypatch.setattr("specport.tune.hand.exits_early", lambda model: True)
    short_of_time = report([*tune, "--per-category", "1"], capsys)
    assert any("not known" in why for why in short_of_time["untried"].values())
    found = report([*tune, "--per-category", "1", "--budget", "30m"], capsys)
    drafts = {each["draft"] for each in found["verdict"]["tried"]}
    (layer,) = {draft.partition(":")[2] for draft in drafts if draft.startswith("early-exit")}
    assert int(layer) in (1, 2, 3) and f"ngram|early-exit:{layer}" in drafts


def test_a_draft_is_built_and_tried(
    tune: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[tuple[Training, str, int]] = []

    def train(
        kind: Training, options: Any, files: ModelFiles, source: str, tokens: int, progress: Any
    ) -> Path:
        built.append((kind, source, tokens))
        return tmp_path / f"toy-{kind.name}"

    monkeypatch.setattr("specport.tune.build.source", lambda *rest: "default")
    monkeypatch.setattr("specport.tune.build.head", lambda *rest: True)
    monkeypatch.setattr("specport.tune.build.train", train)
    found = report([*tune, "--budget", "9h"], capsys)
    assert [kind for kind, _, _ in built] == [HEAD, PARALLEL]
    assert all(source == "default" and kind.least <= tokens <= kind.most for kind, source, tokens in built)
    names = {each["name"] for each in found["verdict"]["tried"]}
    assert {"toy-head", "ngram|toy-head", "toy-parallel6", "ngram|toy-parallel6"} <= names


def test_a_draft_head_is_loaded_with_its_target(
    tune: list[str],
    toy_backend: ToyBackend,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heads: list[str] = []
    load = toy_backend.load

    def seen(files: ModelFiles, options: Any) -> Any:
        if options.role == "target":
            heads.append(options.hidden_head.name if options.hidden_head else "")
        return load(files, options)

    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(toy_backend, "load", seen)
    monkeypatch.setattr("specport.tune.hand.shipped_head", lambda *rest: shipped)
    for module in ("specport.tune.hand", "specport.runtime.loading"):
        monkeypatch.setattr(f"{module}.is_head", lambda path: path == shipped)
    found = report([*tune, "--per-category", "1"], capsys)
    names = {each["name"] for each in found["verdict"]["tried"]}
    assert {"shipped", "ngram|shipped"} <= names and "graft(shipped)" not in names
    assert heads[0] == "" and str(shipped) in heads


def test_better_weights_are_used_for_all_that_follows(
    tune: list[str],
    toy_backend: ToyBackend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [
        Weights("int8", 100.0, 1.0, 4.0, 9.0, 0.01, 0.97, True),
        Weights("int4", 50.0, 0.6, 2.0, 9.0, 0.50, 0.70, False),
        Weights("int8:sym", 100.0, 0.8, 3.0, 9.0, 0.01, 0.97, True),
    ]
    monkeypatch.setattr("specport.tune.hand.formats", lambda *rest: tuple(row.precision for row in rows))
    monkeypatch.setattr("specport.tune.weights.measure", lambda *rest: rows)
    assert main([*tune, "--budget", "10m"]) == 0
    out = capsys.readouterr().out
    assert "toy (int8:sym) on xeon" in out and "faster but changes the text" in out
    kept = tuned.find(None, "xeon")
    assert kept.precision == "int8:sym" and [*kept.choices] == ["int8:sym"]
    found = report([*tune, "--precision", "int8"], capsys)  # the user's own: nothing is compared
    assert found["weights"] == [] and found["precision"] == "int8"
    assert tuned.find(None, "xeon").precision == "int8:sym" and len(tuned.find(None, "xeon").choices) == 2


def test_dry_run_before_and_after(
    tune: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tune, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "download and convert the model" in out and "unknown" in out and "ngram, suffix" in out
    assert not (tmp_path / "cache" / "tune").exists() and not (tmp_path / "cache" / "calibration").exists()


def test_dry_run_estimates_by_measured_costs(
    tune: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("specport.tune.hand.is_ready", lambda *rest: True)
    assert main([*tune, "--no-build", "--dry-run", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [step["kind"] for step in first] == ["calibrate", "heat", "final"] and first[1]["seconds"] is None
    assert main([*tune, "--no-build"]) == 0
    capsys.readouterr()
    assert main([*tune, "--no-build", "--dry-run", "--json"]) == 0
    heat, final = json.loads(capsys.readouterr().out)
    assert 0.02 < heat["seconds"] < 20 and 0.02 < final["seconds"] < 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "soon"], "no amount of time"),
        (["--budget", "2s"], "too short"),
        (["--max-new-tokens", "1"], "max_new_tokens"),
        (["--prompts", "missing.jsonl"], "cannot read"),
        (["--per-category", "2"], "needs --prompts"),
        (["--device", "toaster"], "unknown device"),
        (["--draft", "ngram"], "names no model"),
        (["--draft", "ngram|org/small"], "names no model"),
        (["--draft", "misspelt"], "no file or folder 'misspelt'"),
    ],
)
def test_bad_input(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--quiet", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err
