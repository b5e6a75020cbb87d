"""What holds a program that nobody has read, while a benchmark runs it.

Each measure is shown alone, beside the same program without any: there it gets through.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
isolated: Any = importlib.import_module("isolated")
sys.path.pop(0)

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def needs(measure: str) -> pytest.MarkDecorator:
    missing = measure not in isolated.measures()
    return pytest.mark.skipif(missing, reason=f"this machine does not have {measure}")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os\nos._exit(0)\nassert False", "ended before its last line (status 0)"),
        ("import sys\nsys.exit(0)\nassert False", "SystemExit: 0"),
        ("print('passed')\nassert False, 'on purpose'", "AssertionError: on purpose"),
        ("class E(Exception):\n    __str__ = None\nraise E", "E"),
        ("if", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("input()", "EOFError: EOF when reading a line"),
        ("if __name__ == '__main__': pass\nelse: raise KeyError(__name__)", "KeyError: 'program'"),
    ],
)
def test_success_is_reaching_the_last_line(program: str, reason: str) -> None:
    verdict = isolated.run(program)
    assert (verdict.passed, verdict.reason) == (False, reason)


def test_what_is_left_for_the_exit_does_not_count() -> None:
    verdict = isolated.run("import atexit, time\natexit.register(time.sleep, 60)")
    assert verdict.passed and verdict.seconds < 30


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(600)"])
def test_a_program_that_does_not_end_is_stopped(program: str) -> None:
    verdict = isolated.run(program, seconds=1.5)
    assert not verdict.passed and verdict.reason == "stopped after 1.5 s" and verdict.seconds < 15


@linux
def test_memory_and_files_are_limited() -> None:
    bomb = "kept = bytes(1 << 31)"
    assert isolated.run(bomb, using=[]).passed  # only reserved: it costs nothing
    assert isolated.run(bomb, using=["limits"]).reason.startswith("MemoryError")
    large = "with open('own', 'wb') as file:\n    file.write(bytes(1 << 22))"
    assert isolated.run(large, using=[]).passed
    assert "too large" in isolated.run(large, using=["limits"]).reason


@posix
def test_its_folder_and_environment_are_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET", "x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")  # as /tmp is one on macOS
    monkeypatch.setattr(isolated.tempfile, "tempdir", str(tmp_path / "link"))
    program = (
        "import os, tempfile\nassert os.listdir() == []\nopen('own', 'w').write('x')\n"
        "with tempfile.TemporaryFile() as file: file.write(b'x')\n"
        "open(os.environ['HOME'] + '/second', 'w')\n"
        "assert os.path.samefile(os.environ['HOME'], '.') and 'SECRET' not in os.environ"
    )
    verdict = isolated.run(program)
    assert verdict.passed, verdict.reason


CHANGES = [
    "open(path, 'w')",
    "open(path, 'r+').write('x')",
    "import os\nos.remove(path)",
    "import os\nos.rename(path, path + '2')",
    "import os\nos.truncate(path, 0)",
    "import os\nos.mkdir(path + '2')",
    "import os\nos.symlink(path, 'link')\nopen('link', 'w')",
]


def harm(victim: Path, change: str, using: Iterable[str] | None) -> tuple[bool, bool]:
    """(whether the program got through, whether anything changed)."""
    victim.write_text("whole", encoding="utf-8")
    verdict = isolated.run(f"path = {str(victim)!r}\n{change}", using=using)
    changed = [*victim.parent.iterdir()] != [victim] or victim.read_text(encoding="utf-8") != "whole"
    return verdict.passed, changed


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("using", [pytest.param(["landlock"], marks=needs("landlock")), ["hook"], None])
def test_nothing_outside_the_folder_is_changed(tmp_path: Path, change: str, using: list[str] | None) -> None:
    assert harm(tmp_path / "victim", change, using) == (False, False)


@posix
def test_without_measures_it_would_be_changed(tmp_path: Path) -> None:
    assert harm(tmp_path / "victim", CHANGES[0], []) == (True, True)


@posix
@pytest.mark.parametrize("using", [pytest.param(["landlock"], marks=needs("landlock")), ["hook"]])
def test_no_program_is_started(tmp_path: Path, using: list[str]) -> None:
    program = "import os\nos.spawnv(os.P_WAIT, '/bin/sh', ['sh', '-c', 'echo x > started'])\nopen('started')"
    assert isolated.run(program, using=[]).passed
    assert not isolated.run(program, using=using).passed


@posix
@pytest.mark.parametrize(
    "using",
    [
        pytest.param(["namespaces"], marks=needs("namespaces")),
        ["hook"],
        None,
    ],
)
def test_no_connection_is_made(using: list[str] | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
        assert isolated.run(program, using=[]).passed
        assert not isolated.run(program, using=using).passed


def processes(name: str) -> list[int]:
    """Ids of the processes of this name that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # "id (name) state ..."; a process that has ended stays as a zombie until somebody asks for it
            if f"({name}) " in (text := (folder / "stat").read_text()) and ") Z" not in text:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def left(name: str, leave_group: bool, using: list[str] | None) -> list[int]:
    """Processes that are left of a program that starts one."""
    program = (
        f"import ctypes, os, time\nif os.fork() == 0:\n    os.setsid() if {leave_group} else None\n"
        f"    ctypes.CDLL(None).prctl(15, {name.encode()!r})\n    open('ready', 'w')\n    time.sleep(60)\n"
        "while not os.path.exists('ready'): time.sleep(0.01)"
    )
    assert isolated.run(program, using=using).passed
    return gone(name)


def gone(name: str) -> list[int]:
    """The processes of this name that are still there after three seconds."""
    until = time.monotonic() + 3
    while (found := processes(name)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


@linux
def test_no_process_is_left() -> None:
    name = f"sp{os.getpid()}"
    found = left(name, True, [])
    for process in found:  # what nothing held: it shows that the others are found if they are there
        os.kill(process, signal.SIGKILL)
    assert found
    assert left(f"{name}a", False, []) == []


@linux
@needs("namespaces")
def test_namespaces_end_what_leaves_the_group() -> None:
    assert left(f"sp{os.getpid()}b", True, ["namespaces"]) == []
    name = f"sp{os.getpid()}c"
    program = (
        f"import ctypes, os, time\nos.setsid()\nctypes.CDLL(None).prctl(15, {name.encode()!r})\n"
        "while True: time.sleep(1)"
    )
    assert isolated.run(program, seconds=1.5, using=["namespaces"]).reason == "stopped after 1.5 s"
    assert gone(name) == []


def test_a_process_that_cannot_be_bound_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "__file__", str(Path(__file__).parent / "missing.py"))
    with pytest.raises(RuntimeError, match="no isolated process"):
        isolated.run("x = 1")
