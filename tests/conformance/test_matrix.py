"""`specport matrix`: its rows for a CI, its runs, and the table that joins the results of many machines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

from specport.cli import main
from specport.conformance import suite
from specport.conformance.tables import matrix, results, table
from specport.conformance.tables.results import CHECKS, Cell, DeviceRun, Matrix
from specport.errors import DeviceError, InvalidInput, SpecportError
from specport.runtime.devices.profiles import list_profiles

ALL = dict.fromkeys(CHECKS, Cell("pass"))
WORKFLOW = Path(__file__).parents[2] / ".github" / "workflows" / "matrix.yml"
EVIL = "<script>alert(1)</script> | [x](javascript:y) `z` *a*"


def sample() -> Matrix:
    rows = [
        DeviceRun("xeon", False, "", "Xeon", 9.5, {"runtime": "OpenVINO 1"}, ALL),
        DeviceRun("gaudi-emulated", True, checks=dict.fromkeys(CHECKS, Cell("emulated"))),
        DeviceRun(
            "cuda", False, EVIL, EVIL, 1.0, {},
            {**ALL, "trees": Cell("fail", f"test_trees.py::x: {EVIL}"), "law": Cell("xfail", "known")},
        ),
        DeviceRun("gaudi", False, "no Gaudi driver was found"),
    ]  # fmt: skip
    return Matrix(rows, [{"date": "2026-01-01", "processor": "Xeon"}, {"processor": EVIL}])


def result(check: str, outcome: str, reason: str = "") -> dict[str, Any]:
    return {"id": f"test_{check}.py::t", "check": check, "outcome": outcome, "reason": reason, "seconds": 0.0}


def test_checks_are_the_files_of_the_suite() -> None:
    files = {path.stem.removeprefix("test_") for path in Path(suite.__file__).parent.glob("test_*.py")}
    assert files == {*CHECKS}


def test_rows_of_a_ci(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", "--list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["include"]
    rows = {row["device"]: row for row in told["include"]}
    assert set(rows) == {profile.name for profile in list_profiles()}
    assert rows["xeon"] == {"device": "xeon", "runner": "ubuntu-latest", "label": "", "emulated": False}
    gaudi = {"device": "gaudi", "runner": ["self-hosted", "gaudi"], "label": "hw:gaudi", "emulated": False}
    assert rows["gaudi"] == gaudi
    for profile in list_profiles():
        row = rows[profile.name]
        hosted = profile.emulated or profile.name in ("xeon", "torch-cpu")
        assert (row["runner"] == "ubuntu-latest") == (row["label"] == "") == hosted
        assert row["emulated"] == profile.emulated
    assert main(["matrix", "--list"]) == 0
    assert "with the label hw:core-ultra-npu" in capsys.readouterr().out


def test_the_workflow_uses_what_the_rows_say() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    assert "specport matrix --list --json" in text and "specport matrix --collect" in text
    row = matrix.ci_rows()["include"][0]
    assert set(re.findall(r"matrix\.(\w+)", text)) - {"outputs", "md"} <= {*row, "yml"}
    assert all(re.search(r"@v\d+$", line.strip()) for line in text.splitlines() if "uses:" in line)


@pytest.mark.skipif(os.name == "nt" or shutil.which("jq") is None, reason="needs bash and jq")
@pytest.mark.parametrize(
    ("labelled", "labels", "run"),
    [
        ("true", '["docs", "hw:gaudi"]', {"gaudi"}),  # the label was just put on
        ("false", '["docs", "hw:gaudi"]', set()),  # a later push, or another label
        ("false", "null", set()),  # a push to main
    ],
)
def test_hardware_runs_for_the_revision_that_was_labelled_only(
    tmp_path: Path, labelled: str, labels: str, run: set[str]
) -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    assert "github.event.action == 'labeled' && startsWith(github.event.label.name, 'hw:')" in text
    found = re.search(r"LABELS: .*\n +run: \|\n((?: {10}.*\n)+)", text)
    assert found
    (tmp_path / "rows.json").write_text(json.dumps(matrix.ci_rows()), encoding="utf-8")
    script = f"set -e\nspecport() {{ cat rows.json; }}\n{textwrap.dedent(found[1])}"
    env = {**os.environ, "LABELLED": labelled, "LABELS": labels, "GITHUB_OUTPUT": "out"}
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, check=True)
    chosen = json.loads((tmp_path / "out").read_text(encoding="utf-8").removeprefix("matrix="))["include"]
    assert {row["device"] for row in chosen if row["label"]} == run
    assert {row["device"] for row in chosen} >= {"xeon", "torch-cpu"}


def test_cells_tell_what_a_check_came_to() -> None:
    told = [
        result("steps", "passed"), result("steps", "failed", "boom"), result("steps", "xfailed", "known"),
        result("trees", "skipped", "no trees"), result("trees", "skipped", "no trees"),
        result("batch", "passed"), result("batch", "skipped", "no trees"),
        result("law", "xfailed", "known"), result("law", "passed"),
        result("leaks", "xpassed", "known"),
    ]  # fmt: skip
    told += [result("limits", "failed", f"no. {n}") for n in range(5)]
    found = results.cells(told, emulated=False)
    assert found["limits"].reason.splitlines()[2:] == ["test_limits.py::t: no. 2", "and 2 more"]
    assert found["steps"] == Cell("fail", "test_steps.py::t: boom")
    assert found["trees"] == Cell("not run", "no trees")
    assert (found["batch"], found["leaks"]) == (Cell("pass"), Cell("pass"))
    assert found["law"] == Cell("xfail", "test_law.py::t: known")
    assert found["greedy"] == Cell("not run", "no test ran")
    assert results.cells(told, emulated=True)["batch"] == Cell("emulated")


def test_results_survive_the_file(tmp_path: Path) -> None:
    matrix.write(sample(), tmp_path)
    assert results.read(tmp_path / "matrix.json") == sample()
    assert sample().failed and not Matrix(sample().devices[:2], []).failed


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(format=9),
        lambda told: told.pop("machines"),
        lambda told: told["devices"][0].pop("emulated"),
        lambda told: told["devices"][0]["checks"]["law"].update(state="splendid"),
        lambda told: told.update(devices=[3]),
        lambda told: told.update(devices=7),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(sample().as_json())
    change(told)
    (tmp_path / "matrix.json").write_text(json.dumps(told), encoding="utf-8")
    assert main(["matrix", "--collect", str(tmp_path)]) == 2
    assert "is not a result of specport matrix" in capsys.readouterr().err
    (tmp_path / "matrix.json").write_text("{torn", encoding="utf-8")
    with pytest.raises(InvalidInput, match="not a result of specport matrix"):
        results.read(tmp_path / "matrix.json")


def test_nothing_that_was_collected_is_markup() -> None:
    page, markdown = table.page(sample()), table.markdown(sample())
    for text in (page, markdown):
        assert "<script" not in text and "&lt;script&gt;" in text
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(CHECKS) + 3}
    assert "[x]" not in markdown and "`z`" not in markdown and "*a*" not in markdown
    assert page.count("<tr>") == 5 and 'class="not-run"' in page and 'class="fail"' in page


def test_the_table_shows_states_and_reasons() -> None:
    text = table.text(sample())
    rows = {line.split()[0]: line.split() for line in text.splitlines()[:5]}
    assert rows["xeon"][1:] == ["pass"] * len(CHECKS)
    assert rows["gaudi-emulated"][1] == "(EMULATED)" and rows["gaudi-emulated"][2:] == ["emulated"] * len(
        CHECKS
    )
    assert rows["cuda"].count("fail") == 1 and rows["cuda"].count("xfail") == 1
    assert "gaudi: no Gaudi driver was found" in text
    assert "cuda, trees: fail: test_trees.py::x" in text
    markdown = table.markdown(sample())
    assert "- date: 2026-01-01" in markdown and "| xeon | Xeon | pass |" in markdown


def test_collecting_joins_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passed = DeviceRun("gaudi", False, "", "HL-225", 1.0, {}, ALL)
    other = DeviceRun("xeon", False, "", "another Xeon", 1.0, {}, ALL)
    (tmp_path / "deep").mkdir()
    matrix.write(Matrix(sample().devices[:2], [{"processor": "Xeon"}]), tmp_path / "deep" / "a")
    matrix.write(Matrix([passed, other], [{"processor": "Xeon"}]), tmp_path / "b")
    assert main(["matrix", "--collect", str(tmp_path), "--out", str(tmp_path / "all"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "all" / "matrix.json").read_text(encoding="utf-8"))
    rows = [(row["device"], row["machine"], row["note"]) for row in told["devices"]]
    assert {row for row in rows if row[0] == "xeon"} == {("xeon", "Xeon", ""), ("xeon", "another Xeon", "")}
    assert ("gaudi", "HL-225", "") in rows
    assert ("cuda", "", "no machine has reported on it") in rows
    assert len(told["machines"]) == 1
    # A failure anywhere is a failure of the whole; a row that did not run gives way to one that did.
    joined = results.join([sample(), Matrix([passed], [])], {"gaudi": False})
    assert joined.failed and [row.machine for row in joined.devices if row.device == "gaudi"] == ["HL-225"]
    assert main(["matrix", "--collect", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--list", "--device", "xeon"], ["--list", "--out", "x"], ["--collect", "x", "--model", "y"],
        ["--list", "--collect", "x"], ["--device", "abacus"], ["--device", "none.toml"],
    ],
)  # fmt: skip
def test_bad_input(arguments: list[str]) -> None:
    assert main(["matrix", *arguments]) == 2


def test_pytest_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "find_spec", lambda name: None)
    with pytest.raises(SpecportError, match=r"pip install 'specport\[test\]'"):
        matrix.run()


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECPORT_BACKENDS", "")
    lines: list[str] = []
    found = matrix.run(say=lines.append)
    assert [row.device for row in found.devices] == [profile.name for profile in list_profiles()]
    assert not found.failed and not any(row.ran for row in found.devices)
    assert all("SPECPORT_BACKENDS" in row.note for row in found.devices)
    assert len(lines) == len(found.devices) and all("not run" in line for line in lines)
    with pytest.raises(DeviceError, match="xeon cannot be used"):
        matrix.run(["xeon"])


def test_provenance() -> None:
    facts = matrix.provenance()
    assert {"date", "processor", "platform", "python", "versions"} <= set(facts)
    assert "specport" in facts["versions"] and "numpy" in facts["versions"]
    assert re.fullmatch(r"[0-9a-f]{40}\+?", facts.get("commit", "0" * 40))
