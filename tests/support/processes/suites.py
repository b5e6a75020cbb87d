"""Run the conformance suite in processes of its own, also on the devices of `broken_backend`.

As a program, `python -m support.processes.suites JOBS.json` runs several suites one after another: starting
Python and importing the packages takes longer than most tests of the suite.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.processes.forked_jobs import forked, use_forks

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "third_party_backend"
_OWN = "specport.conformance"
# Rules of acceptance and drafters run on the host: xeon and torch-cpu try all of them, with the suite's own
# model. For other devices and models two of the drafters, a tree, and one rule stand for all.
FEW = ("-k", "not ngram and not recycle and (not test_law or rejection or drafted_tree or suffix)")
_PROFILE = """
name = "{fault}"
description = "a device with a fault"
backend = "broken"
device = "{fault}"
precision = "fp32"
draft_precision = "fp32"
emulated = {emulated}
cost_source = "estimate"
[cost]
1 = 1.0
"""


@dataclass(frozen=True)
class Suite:
    """One pytest session on one device.

    folder: holds the session's files and nothing else.
    tests:  modules or test ids of the suite.
    """

    folder: str
    arguments: Sequence[str]
    tests: Sequence[str] = (_OWN,)

    @property
    def report(self) -> Path:
        return Path(self.folder) / "report.json"

    @property
    def command(self) -> list[str]:
        """Return the arguments for pytest."""
        fixed = ["-p", "specport.conformance.plugin", "-p", "no:cacheprovider", "--tb=line"]
        fixed += ["--basetemp", str(Path(self.folder) / "temporary")]
        return [*fixed, "--pyargs", *self.tests, "--specport-report", str(self.report), *self.arguments]


class Ran(NamedTuple):
    """What became of a suite. code: pytest's exit code; results: test id -> entry of the report."""

    code: int
    output: str
    results: dict[str, dict[str, Any]]


def run_suite(
    folder: Path, environment: Mapping[str, str], *arguments: str, tests: Sequence[str] = (_OWN,)
) -> Ran:
    """Run one suite in a process of its own."""
    (ran,) = run_suites([Suite(str(folder), arguments, tests)], environment, folder)
    return ran


def run_suites(suites: Sequence[Suite], environment: Mapping[str, str], folder: Path) -> list[Ran]:
    """Run suites one after another in one process.

    environment: of the process.
    folder:      takes the list of the suites.
    """
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps([asdict(suite) for suite in suites]), encoding="utf-8")
    for suite in suites:
        suite.report.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(ROOT / "tests"))))
    command, variables = forked(__name__, {**environment, "PYTHONPATH": path})
    done = subprocess.run(
        [*command, str(jobs)], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [
        Ran(
            int((Path(suite.folder) / "code").read_text(encoding="utf-8")),
            (Path(suite.folder) / "output").read_text(encoding="utf-8"),
            _results(suite),
        )
        for suite in suites
    ]


def with_broken_backend(folder: Path) -> dict[str, str]:
    """Return an environment in which the broken backend is registered; `folder` takes its entry point."""
    about = folder / "broken-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(
        "[specport.backends]\nbroken = support.toys.broken_backend:backend\n"
    )
    path = os.pathsep.join(map(str, (folder, ROOT / "tests", EXAMPLE)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def broken_profile(folder: Path, fault: str, emulated: bool = False) -> Path:
    """Write the profile of a device with this fault."""
    path = folder / f"{fault}.toml"
    path.write_text(_PROFILE.format(fault=fault, emulated=str(emulated).lower()), encoding="utf-8")
    return path


def _results(suite: Suite) -> dict[str, dict[str, Any]]:
    if not suite.report.is_file():
        return {}
    return {each["id"]: each for each in json.loads(suite.report.read_text(encoding="utf-8"))["results"]}


def _main(jobs: Path) -> None:
    use_forks()
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        suite = Suite(**job)
        folder = Path(suite.folder)
        with (
            (folder / "output").open("w", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            code = int(pytest.main(suite.command))
        (folder / "code").write_text(str(code), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
