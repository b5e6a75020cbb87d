"""Runs the suite on every device of this machine, each in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import specport
from specport.conformance.tables.results import CHECKS, FILE, PACKAGES, Cell, DeviceRun, Matrix, cells
from specport.conformance.tables.table import markdown, page
from specport.errors import DeviceError, InvalidInput, SpecportError
from specport.models.atomic import write_atomically
from specport.outside.places import expanded
from specport.runtime.devices.profiles import Profile, cpu_name, list_profiles, load_profile, usable_cores
from specport.runtime.devices.registry import DeviceStatus, statuses
from specport.runtime.versions import installed

LIMIT_S = 1800  # a device that hangs must not keep the others from their turn
# GitHub's own machines: what a profile says of processors is asked of this one.
HOSTED, HOSTED_CPU = "ubuntu-latest", "AMD EPYC 7763 64-Core Processor"
_PYTEST_FAILED = 1


def ci_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of a CI, in the shape that GitHub's `fromJSON` makes a job matrix of.

    label: what a pull request must be labelled with before such hardware is used; "" = always run.
    """
    rows = []
    for profile in list_profiles():
        on_cpu = profile.device.upper() == "CPU" and profile.mismatch(HOSTED_CPU) is None
        hosted = profile.emulated or on_cpu
        rows.append(
            {
                "device": profile.name,
                "runner": HOSTED if hosted else ["self-hosted", profile.name],
                "label": "" if hosted else f"hw:{profile.name}",
                "emulated": profile.emulated,
            }
        )
    return {"include": rows}


def run(
    devices: Sequence[str] = (), model: str | None = None, say: Callable[[str], None] = lambda line: None
) -> Matrix:
    """Run the suite on these devices, or on every one that is here and not meant for another processor.

    Raises SpecportError without pytest and DeviceError for a named device that cannot be used.
    """
    if find_spec("pytest") is None:
        raise SpecportError("the conformance suite needs pytest", "pip install 'specport[test]'")
    if model:
        expanded(model)  # what is no path and no hub id cannot be given to a process either
    profiles = [load_profile(device) for device in devices] or list_profiles()
    places = [*devices] or [profile.name for profile in profiles]
    found = statuses(profiles)
    for status in found if devices else ():
        if not status.available:
            raise DeviceError(f"device {status.profile} cannot be used: {status.reason}", status.remedy)
    rows = []
    for place, profile, status in zip(places, profiles, found, strict=True):
        why = "" if devices else _left_out(profile, status)
        if why:
            say(f"{profile.name}: not run, {why}")
            rows.append(DeviceRun(profile.name, profile.emulated, why))
            continue
        say(f"{profile.name}{' (EMULATED)' if profile.emulated else ''}: running {len(CHECKS)} checks")
        row = _run(place, profile, status, model)
        rows.append(row)
        states = [cell.state for cell in row.checks.values()]
        told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        say(f"{profile.name}: {told} ({row.seconds:.0f} s)")
    return Matrix(rows, [provenance()])


def _left_out(profile: Profile, status: DeviceStatus) -> str:
    if not status.available:
        return status.reason + (f" (to mend it: {status.remedy})" if status.remedy else "")
    if note := profile.mismatch(cpu_name()):
        return f"{note}; name it with --device to run it all the same"
    return ""


def _run(place: str, profile: Profile, status: DeviceStatus, model: str | None) -> DeviceRun:
    note = profile.mismatch(cpu_name()) or ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        report = Path(folder, "report.json")
        ini = Path(folder, "pytest.ini")  # the user's own settings are not for this run
        ini.write_text("[pytest]\n", encoding="utf-8")
        command = [
            sys.executable, "-m", "pytest", "-q", "--tb=line", "-c", str(ini), "--rootdir", folder,
            "-p", "specport.conformance.plugin", "-p", "no:cacheprovider", "--pyargs", "specport.conformance",
            "--specport-device", str(Path(place).resolve()) if place.endswith(".toml") else place,
            "--specport-report", str(report), *(("--specport-model", model) if model else ()),
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, timeout=LIMIT_S, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                encoding="utf-8", errors="replace",
            )  # fmt: skip
            code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired:
            code, output = -1, f"it did not finish within {LIMIT_S} s"
        told: dict[str, Any] = {}
        if code in (0, _PYTEST_FAILED) and report.is_file():
            told = json.loads(report.read_text(encoding="utf-8"))
    if told:
        checks = cells(told["results"], profile.emulated)
    else:
        lines = [line for line in output.strip().splitlines() if line.strip()]
        why = f"the suite ended with code {code}: " + "\n".join(lines[-5:])
        checks = dict.fromkeys(CHECKS, Cell("fail", why))
    seconds = float(told.get("seconds", 0.0))
    return DeviceRun(profile.name, profile.emulated, note, cpu_name(), seconds, status.facts, checks)


def provenance() -> dict[str, str]:
    """Date, versions and machine of what is run now."""
    facts = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": cpu_name(),
        "cores": str(usable_cores()),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version}" for name, version in installed(PACKAGES).items()),
    }
    if commit := _commit():
        facts["commit"] = commit
    return facts


def _commit() -> str:
    """The checkout's commit, with a + where files were changed; what GitHub says of it; or nothing."""
    folder = Path(specport.__file__).parent.parent
    if not (folder / ".git").exists():
        return os.environ.get("GITHUB_SHA", "")

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, encoding="utf-8", check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return ""


def write(matrix: Matrix, folder: Path) -> None:
    """matrix.json, matrix.md and matrix.html. Raises InvalidInput where they cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            (FILE, matrix.as_json()),
            ("matrix.md", markdown(matrix)),
            ("matrix.html", page(matrix)),
        ):
            write_atomically(folder / name, content)
    except OSError as error:
        raise InvalidInput(f"cannot write to {folder}: {error.strerror or error}") from error
