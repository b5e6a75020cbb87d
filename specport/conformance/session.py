"""A run of the suite on one device: header, expected failures, and the report that `matrix` reads."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from specport.conformance.tables.results import PACKAGES
from specport.errors import SpecportError
from specport.models.atomic import write_json
from specport.runtime.devices.profiles import Profile, cpu_name, load_profile
from specport.runtime.devices.registry import DeviceStatus, statuses
from specport.runtime.versions import installed

HERE = Path(__file__).with_name("suite")


@dataclass(frozen=True)
class Result:
    """check: the test's file without `test_`; outcome: passed, failed, skipped, xfailed or xpassed."""

    id: str
    check: str
    outcome: str
    reason: str
    seconds: float


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Conformance:
    """The plugin that is registered when a device is given.

    expected: test id -> why it fails on this device.
    missing:  why the device cannot be used, where that is to be skipped; else empty.
    """

    profile: Profile
    status: DeviceStatus
    expected: dict[str, str]
    report: Path | None
    missing: str = ""
    results: dict[str, Result] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    @classmethod
    def on(cls, config: pytest.Config) -> Conformance:
        """Raises pytest.UsageError for an unknown or unavailable device and for unreadable options."""
        try:
            profile = load_profile(config.getoption("--specport-device"))
        except SpecportError as error:
            raise pytest.UsageError(str(error)) from error
        (status,) = statuses([profile])
        missing = ""
        if not status.available:
            missing = f"device {profile.name} cannot be used: {status.reason}"
            missing += f" (to mend it: {status.remedy})" if status.remedy else ""
            if not config.getoption("--specport-skip-missing"):
                raise pytest.UsageError(missing)
        chosen = config.getoption("--specport-xfail")
        report = config.getoption("--specport-report")
        expected = read_xfails(Path(chosen)) if chosen else read_shipped_xfails(profile.name)
        return cls(profile, status, expected, Path(report) if report else None, missing)

    def pytest_report_header(self) -> list[str]:
        facts = "; ".join(f"{key} {value}" for key, value in self.status.facts.items())
        emulated = ": EMULATED, other hardware stands in" if self.profile.emulated else ""
        return [
            f"specport device: {self.profile.name} ({self.profile.description}){emulated}",
            f"specport backend: {self.status.backend}, device {self.status.device}; {facts or 'no facts'}",
            f"processor: {cpu_name()}; {platform.platform()}",
            ", ".join(f"{name} {version}" for name, version in installed((*PACKAGES, "pytest")).items()),
        ]

    @pytest.hookimpl(tryfirst=True)  # before -k and -m leave anything out
    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        own = {id_of(item): item for item in items if HERE in item.path.parents}
        files = {name.partition("::")[0] for name in own}
        for name, reason in self.expected.items():
            file = name.partition("::")[0]
            if name in own:
                own[name].add_marker(pytest.mark.xfail(reason=reason, strict=False))
            elif file in files or not (HERE / file).is_file():
                warnings.warn(
                    pytest.PytestWarning(f"stale expected failure: there is no {name}"), stacklevel=1
                )
        if self.missing:
            for item in own.values():
                item.add_marker(pytest.mark.skip(reason=self.missing))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report: pytest.TestReport = yield
        if HERE in item.path.parents:
            self._note(id_of(item), report)
        return report

    def _note(self, name: str, report: pytest.TestReport) -> None:
        before = self.results.get(name)
        seconds = report.duration + (before.seconds if before else 0.0)
        outcome, reason = _outcome(report)
        if before and (before.outcome != "passed" or (outcome == "passed" and report.when != "call")):
            outcome, reason = before.outcome, before.reason  # what went wrong first is what is told
        check = name.partition(".py::")[0].removeprefix("test_")
        self.results[name] = Result(name, check, outcome, reason, seconds)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for result in self.results.values():
            if result.outcome == "xpassed":
                terminalreporter.line(f"expected to fail, but passed: {result.id}")

    def pytest_sessionfinish(self) -> None:
        if self.report is None:
            return
        told = {
            "device": self.profile.name,
            "emulated": self.profile.emulated,
            "backend": self.status.backend,
            "facts": self.status.facts,
            "seconds": time.time() - self.started,
            "results": [asdict(result) for result in self.results.values()],
        }
        write_json(self.report, told)


def id_of(item: pytest.Item) -> str:
    """`test_steps.py::test_x[param]`: the same wherever the package is installed."""
    return f"{item.path.name}::{item.nodeid.partition('::')[2]}"


def read_xfails(path: Path) -> dict[str, str]:
    """Test id -> reason, from lines of `test_id  # reason`. Raises pytest.UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise pytest.UsageError(f"cannot read the expected failures {path}: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, _, reason = (part.strip() for part in line.partition("#"))
        if name and not reason:
            raise pytest.UsageError(f"{path}, line {number}: say why {name} fails, as in: {name}  # reason")
        if name:
            found[name] = reason
    return found


def read_shipped_xfails(profile: str) -> dict[str, str]:
    """Return the expected failures that specport knows of a device. Raises pytest.UsageError."""
    path = Path(str(resources.files("specport.conformance"))) / "xfail" / f"{profile}.txt"
    return read_xfails(path) if path.is_file() else {}


def _outcome(report: pytest.TestReport) -> tuple[str, str]:
    expected = getattr(report, "wasxfail", None)
    if expected is not None:
        return ("xfailed" if report.skipped else "xpassed"), str(expected)
    if report.skipped and isinstance(report.longrepr, tuple):
        return "skipped", str(report.longrepr[2]).removeprefix("Skipped: ")
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        return "failed", str(crash.message if crash else report.longrepr).strip()[:500]
    return report.outcome, ""
