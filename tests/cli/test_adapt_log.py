"""`specport adapt on`, `off`, `status` and `clear`: what they say and do, and errors with a next step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from specport.cli import adapt, main
from specport.errors import InvalidInput
from specport.models import bundle
from specport.models.bundle import Bundle
from specport.traffic.dialogues import Dialogue
from specport.traffic.log import MAX_BYTES, TrafficLog


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))


def draft_for(folder: Path, fingerprint: str) -> Path:
    folder.mkdir()
    (folder / "weights").write_text("1")
    measured = {"speed_up": 2.0}
    bundle.write(
        folder, Bundle(f"target-{fingerprint}", "", fingerprint, "", "", "int8", (0,), 1, measured=measured)
    )
    return folder


def write_text(log: TrafficLog) -> bool:
    top = np.zeros((5, 2), np.int32), np.ones((5, 2), np.float32)
    return log.add([Dialogue(np.arange(8, dtype=np.int32), 3, *top)])


def status(capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, object]]:
    assert main(["adapt", "status", "--json", *more]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_a_log_is_switched_on_filled_shown_and_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft, log = draft_for(tmp_path / "draft", "a" * 64), TrafficLog("a" * 64)
    assert main(["adapt", "status"]) == 0 and "specport adapt on" in capsys.readouterr().err
    assert not write_text(log) and not log.folder.exists()
    assert main(["adapt", "on", "--draft", str(draft)]) == 0
    said = capsys.readouterr().err
    assert str(log.folder) in said and "64.0 MB" in said and "specport adapt clear" in said
    assert write_text(log)
    (facts,) = status(capsys)
    assert (facts["on"], facts["texts"], facts["bytes"]) == (True, 1, log.size())
    assert (facts["draft"], facts["max_bytes"], facts["half_done"]) == (str(draft), MAX_BYTES, False)
    (log.work / "x").mkdir(parents=True)
    assert main(["adapt", "status"]) == 0
    shown = capsys.readouterr().out
    assert str(log.folder) in shown and "1 texts" in shown and "half done" in shown and ", on" in shown
    assert main(["adapt", "off"]) == 0 and "nothing is recorded" in capsys.readouterr().err
    assert not write_text(log) and len(log.files()) == 1
    assert main(["adapt", "on", "--limit", "1MB"]) == 0  # the only one is known
    assert main(["adapt", "clear"]) == 0
    assert "deleted 1 texts" in capsys.readouterr().err and not log.work.exists()
    (facts,) = status(capsys, "--draft", str(draft))
    assert (facts["on"], facts["texts"], facts["max_bytes"]) == (True, 0, 10**6)


def test_several_drafts_have_to_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drafts = {name: draft_for(tmp_path / name, name * 64) for name in "ab"}
    assert main(["adapt", "on"]) == 2
    assert "no draft is known" in capsys.readouterr().err
    bundle.register(drafts["a"], "a" * 64)
    assert main(["adapt", "on"]) == 0  # the only one that was built
    assert main(["adapt", "on", "--draft", str(drafts["b"])]) == 0
    assert len(status(capsys)) == 2
    assert main(["adapt", "--undo"]) == 2
    said = capsys.readouterr().err
    assert "--draft DIR" in said and str(drafts["a"]) in said and str(drafts["b"]) in said
    assert main(["adapt", "off", "--draft", str(drafts["b"])]) == 0
    assert [facts["on"] for facts in status(capsys)] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "next_step"),
    [
        (["adapt", "on", "--draft", "missing"], "specport quantize --out DIR"),
        (["adapt", "--draft", "missing"], "specport quantize --out DIR"),
        (["adapt", "--budget", "soon"], "10m"),
        (["adapt", "--budget", "0"], "10m"),
        (["adapt", "--undo", "--draft", "DRAFT"], "specport adapt status"),
        (["adapt", "on", "--draft", "DRAFT", "--limit", "many"], "--limit 64MB"),
        (["adapt", "on", "--draft", "DRAFT", "--limit", "1"], "--limit 64MB"),
    ],
    ids=" ".join,
)
def test_errors_name_the_next_step(
    arguments: list[str], next_step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = draft_for(tmp_path / "draft", "a" * 64)
    assert main([str(draft) if a == "DRAFT" else a for a in arguments]) == 2
    said = capsys.readouterr().err
    assert next_step in said and len(said.splitlines()) == 1


def test_times_and_sizes() -> None:
    assert [adapt._seconds(text) for text in ("90", "90s", "1.5m", "2H")] == [90, 90, 90, 7200]
    assert [adapt._size(text) for text in ("64MB", "200000", "0.5 gb", "100kb")] == [
        64 * 10**6, 200_000, 500 * 10**6, 10**5,
    ]  # fmt: skip
    with pytest.raises(InvalidInput):
        adapt._size("5 horses")
