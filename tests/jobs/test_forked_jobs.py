"""What tests fork is what `worker.run` would have started: it ends alike, and with those who wait for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes.forked_jobs import Forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux only")
JOB = """
import os, sys, time
print("decimal" in sys.modules, os.getcwd(), os.environ.get("WORD"), sys.argv[1:], sys.path[1], flush=True)
line = sys.stdin.readline()
if line == "die\\n":
    os.kill(os.getpid(), 9)
if line == "fail\\n":
    raise OSError("no room")
while line:
    line = sys.stdin.read()
sys.exit(130)
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    found = Forks(tmp_path_factory.mktemp("forks"), ("decimal", "no.such.package"))
    yield found
    found.close()


def start(forks: Forks, folder: Path) -> subprocess.Popen[str]:
    (folder / "job.py").write_text(JOB, encoding="utf-8")
    pipe = subprocess.PIPE
    command = [*forks.launcher(), "job", "a", "b c"]
    return subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        cwd=folder,
        env={"WORD": "ü", "PYTHONPATH": "/own"},
    )


@pytest.mark.parametrize(("said", "code"), [("die\n", -9), ("fail\n", 1), ("", 130)])
def test_it_ends_as_a_process_of_its_own(forks: Forks, tmp_path: Path, said: str, code: int) -> None:
    process = start(forks, tmp_path)
    out, errors = process.communicate(said, timeout=60)
    assert out == f"True {tmp_path} ü ['a', 'b c'] /own\n"
    assert ("OSError: no room" in errors) == (code == 1)
    assert process.returncode == code


def test_it_ends_with_the_process_that_waits_for_it(forks: Forks, tmp_path: Path) -> None:
    process, other = start(forks, tmp_path), start(forks, tmp_path)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline()
    process.kill()
    assert process.stdout.read() == ""  # the fork, which would wait for its input, has let go of the pipe
    assert other.communicate("", timeout=60)[0] and other.returncode == 130
    process.stdin.close()
