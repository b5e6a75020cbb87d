"""Files and folders appear all at once, and what was there stays until then."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from specport.errors import ModelError
from specport.models import atomic, bundle, manifest
from specport.models.atomic import recovered, replace_folder, replacing, write_atomically, write_json
from specport.runtime import numerics

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_with_the_bytes_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"b": 1, "a": "ä"}, sort_keys=True)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ä", "b": 1}
    write_atomically(path, "x\ny\r\n")
    assert path.read_bytes() == b"x\ny\r\n" and names(path.parent) == ["a.json"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_the_old_file_stays_where_the_new_one_fails(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise failure

    with pytest.raises(type(failure)):
        half()
    assert path.read_text() == "old" and names(tmp_path) == ["a"]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


def test_windows_tries_again_while_a_file_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, []

    def busy(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) < 3:
            raise PermissionError(13, "Access is denied")
        real(source, target)

    write_atomically(tmp_path / "a", "old")
    monkeypatch.setattr(atomic, "_WAIT_S", 0.0)
    monkeypatch.setattr(atomic.os, "replace", busy)
    monkeypatch.setattr(atomic, "_WINDOWS", True)
    write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new" and len(calls) == 3


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "x").write_text(text)
    return path


def test_a_folder_is_swapped(tmp_path: Path) -> None:
    replace_folder(folder_with(tmp_path / "new", "1"), tmp_path / "out")
    replace_folder(folder_with(tmp_path / "new", "2"), tmp_path / "out")
    assert (tmp_path / "out" / "x").read_text() == "2" and names(tmp_path) == ["out"]


def test_a_process_that_was_killed_between_the_moves_loses_nothing(tmp_path: Path) -> None:
    old = folder_with(tmp_path / ".out.0123abcd.old", "old")
    assert (recovered(tmp_path / "out") / "x").read_text() == "old" and not old.exists()
    folder_with(old, "older")
    replace_folder(folder_with(tmp_path / "new", "1"), tmp_path / "out")
    assert (tmp_path / "out" / "x").read_text() == "1" and names(tmp_path) == ["out"]


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    stale, fresh, other = (tmp_path / f".{name}.tmp" for name in ("a.0123abcd", "a.0123abce", "b.0123abcd"))
    for path in (stale, fresh, other):
        path.write_text("half")
    for path in (stale, other):
        os.utime(path, (1, 1))
    write_atomically(tmp_path / "a", "whole")
    assert names(tmp_path) == [fresh.name, other.name, "a"]


WRITERS = {
    "answers": lambda folder: numerics.Answers(folder / "exact.json").put("key", True),
    "manifest": lambda folder: manifest.write(folder, {}),
    "register": lambda folder: bundle.register(folder, "f" * 64),
}


@pytest.mark.parametrize("name", WRITERS)
def test_writers_leave_nothing_half_done(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that fails: neither the file nor a temporary one is left."""
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path))
    (tmp_path / "weights").write_bytes(np.zeros(3).tobytes())

    def failing(source: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", failing)
    with suppress(OSError, ModelError):  # the answers are best effort, and raise nothing
        WRITERS[name](tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["weights"]


def test_no_state_is_written_in_place() -> None:
    """Every writer of JSON or text goes through `atomic`, but for what nobody else can see yet."""
    in_place = re.compile(r"\.write_text\(|json\.dump\(|open\([^)]*\"w\"")
    allowed = {
        "specport/models/atomic.py", "specport/cli/terminal.py", "specport/conformance/models/tiny.py",
        "specport/conformance/tables/matrix.py", "specport/jobs/worker.py", "specport/jobs/entry.py",
    }  # fmt: skip
    found = {
        path.relative_to(ROOT).as_posix()
        for top in ("specport", "quantize", "backends")
        for path in (ROOT / top).rglob("*.py")
        if in_place.search(path.read_text(encoding="utf-8"))
    }
    assert found <= allowed
