"""The working directory of a build: its lock, what it keeps, and the causes of errors in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specport.errors import InvalidInput, ModelError
from specport.jobs import workdir
from specport.models.os_errors import cause

IDENTITY = {"layers": 3}


def test_it_is_deleted_while_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another build that starts during the deletion is refused; it would lose what it writes."""
    work = tmp_path / "draft.partial"
    real, refused = workdir.shutil.rmtree, []

    def slow(path: Path, *arguments: Any, **options: Any) -> None:
        with pytest.raises(InvalidInput, match="another process"), workdir.hold_workdir(work, IDENTITY):
            pass
        refused.append(path)
        real(path, *arguments, **options)

    with workdir.hold_workdir(work, IDENTITY):
        (work / "half").mkdir()
        monkeypatch.setattr(workdir.shutil, "rmtree", slow)
    assert refused and not work.exists()
    with workdir.hold_workdir(work, IDENTITY):  # and the next build may start
        pass
    assert not work.exists()


def test_what_was_done_stays_after_an_error_and_goes_for_another_request(tmp_path: Path) -> None:
    work = tmp_path / "draft.partial"

    def stopped() -> None:
        with workdir.hold_workdir(work, IDENTITY):
            (work / "half").mkdir()
            (work / "half" / "x").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert os.name == "nt" or work.stat().st_mode & 0o077 == 0  # the request has the user's texts
    with workdir.hold_workdir(work, IDENTITY):
        assert (work / "half" / "x").read_text() == "x"
        (work / "half" / "x").write_text("y")
    with pytest.raises(KeyboardInterrupt):
        stopped()
    with workdir.hold_workdir(work, {"layers": 2}):
        assert sorted(path.name for path in work.iterdir()) == ["lock", "request.json"]
    assert not work.exists()


def reads_what_is_missing(folder: Path) -> None:
    (folder / "nothing.json").read_text()


def opens_a_folder(folder: Path) -> None:
    open(folder, "rb").close()


def raising(error: Exception) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        raise error

    return act


CAUSES = [
    (reads_what_is_missing, r"nothing\.json is missing"),
    (raising(PermissionError(13, "Permission denied", "/weights")), "no permission for /weights"),
    (raising(OSError(30, "Read-only file system", "/x")), "no permission for /x"),
    (raising(OSError(28, "No space left on device")), "the disk is full.*No space.*free some space"),
    (raising(OSError(5, "Input/output error", "/x")), "/x: Input/output error"),
    (raising(OSError("I/O error: Disk quota exceeded (os error 28)")), "the disk is full"),
]
if sys.platform != "win32":
    CAUSES.append((opens_a_folder, "Is a directory"))


@pytest.mark.parametrize(("act", "says"), CAUSES, ids=[says for _, says in CAUSES])
def test_an_error_is_told_by_its_cause(tmp_path: Path, act: Callable[[Path], None], says: str) -> None:
    work = tmp_path / "draft.partial"
    with pytest.raises(ModelError, match=says) as caught, workdir.hold_workdir(work, IDENTITY):
        act(tmp_path)
    assert "cannot write" not in str(caught.value)
    if "disk" not in says:
        assert "free some space" not in str(caught.value)


def test_a_job_tells_the_cause_too(tmp_path: Path) -> None:
    """A job that reads a missing file names it."""
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"function": "job:read", "grace_s": 0.0, "verbose": False, "arguments": {}}))
    code = (
        "import sys, types; from specport.jobs import entry\n"
        "job = types.ModuleType('job'); job.read = lambda progress: open(sys.argv[2])\n"
        "sys.modules['job'] = job; sys.exit(entry.main())"
    )
    command = [sys.executable, "-c", code, str(task), str(tmp_path / "nothing.json")]
    # stdin stays open: its end would tell the job that its parent has ended.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        told = json.loads(run.stdout.read().splitlines()[-1])
        assert run.wait(60) == 2
    assert "nothing.json is missing" in told["error"] and "write" not in told["error"]
    assert "space" not in told["hint"]


def test_errors_name_both_files_and_need_no_number() -> None:
    error = OSError(18, "Invalid cross-device link", "a", None, "b")
    assert cause(error).message == "a and b: Invalid cross-device link"
    assert cause(ValueError("odd")).message == "odd"
