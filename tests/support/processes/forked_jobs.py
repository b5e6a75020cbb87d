"""Jobs in forks of one process that has imported what they need.

Starting Python and importing torch, transformers, optimum and NNCF takes longer than most jobs on tiny
models. The first job of each kind in a test run is started as for users, so that each imports what it needs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from specport.jobs import worker
from support.processes import fork_server

KINDS = "specport.quantize."
ADDRESS = "SPECPORT_TEST_FORKS"  # the variable that tells processes of the tests where to ask
NOT = "package_faults"  # what is imported, and how, is what it tells
PACKAGES = ("accelerate", "transformers", "openvino", "optimum.exporters.openvino", "optimum.intel", "nncf")


_forks: list[Forks] = []  # those of this test run


def asking(address: str) -> list[str]:
    """Return the beginning of a command that runs a module in a fork of the process at this address."""
    return [sys.executable, "-I", "-S", fork_server.__file__, "ask", address]


def forked(module: str, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the beginning of a command that runs a module, and its environment.

    It runs in a fork where the system can fork, and so do the jobs that it starts: see `use_forks`.
    """
    if not _forks:
        return [sys.executable, "-m", module], {**environment}
    (forks,) = _forks
    return [*forks.launcher(), module], {**environment, ADDRESS: forks.address}


def use_forks() -> None:
    """Let jobs of this process be forked by the server that its environment names, if it names one."""
    address, launcher = os.environ.get(ADDRESS), worker._launcher
    if address is not None:
        worker._launcher = lambda processes: launcher(processes) if processes > 1 else asking(address)


class Forks:
    """The process that forks; it is started with the first job."""

    def __init__(self, folder: Path, packages: Sequence[str] = PACKAGES) -> None:
        self.address, self._packages = str(folder / "forks"), packages
        self._server: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def launcher(self) -> list[str]:
        """Return the beginning of a command that runs a module in a fork."""
        with self._lock:
            if self._server is None:
                self._server = subprocess.Popen(
                    [sys.executable, fork_server.__file__, "serve", self.address, *self._packages],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
                )  # fmt: skip
                assert self._server.stdout is not None and self._server.stdout.readline() == b"ready\n"
        return asking(self.address)

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()


@contextlib.contextmanager
def forked_jobs(started: Path) -> Iterator[None]:
    """Let `worker.run` fork all jobs but the first of each kind.

    started: a folder that all processes of this test run share; it notes which kinds have been started.
    """
    run, launcher, asked = worker.run, worker._launcher, threading.local()
    path = os.environ.get("PYTHONPATH")

    def run_forked(job: worker.Job, *given: Any, **more: Any) -> Any:
        own = (
            not job.function.startswith(KINDS) or NOT in job.function or os.environ.get("PYTHONPATH") != path
        )
        asked.own = own or _is_first(started / job.function.replace(":", "."))
        return run(job, *given, **more)

    def launch(processes: int) -> list[str]:
        return launcher(processes) if asked.own or processes > 1 else forks.launcher()

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        forks = Forks(Path(folder))
        patch.setattr(worker, "run", run_forked)
        patch.setattr(worker, "_launcher", launch)
        _forks.append(forks)
        try:
            yield
        finally:
            _forks.remove(forks)
            forks.close()


def _is_first(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
