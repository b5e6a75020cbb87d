"""What a run of the suite found, device by device: plain data, as matrix.json keeps it. Runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specport.errors import InvalidInput
from specport.outside import Format

FILE = "matrix.json"
FORMAT = 1
# A check is a file of the suite, test_NAME.py; the order of the table's columns.
CHECKS = (
    "steps", "outputs", "rollback", "trees", "visibility", "gather", "diffusion", "fork", "prefix", "batch",
    "joining", "room", "limits", "greedy", "law", "logprobs", "errors", "leaks", "hidden", "early_exit",
    "conditioning",
)  # fmt: skip
# Whose versions a result depends on.
PACKAGES = ("numpy", "openvino", "torch", "transformers", "optimum-intel", "optimum-habana")
_TOLD = 3
STATES = ("pass", "fail", "emulated", "xfail", "not run")


@dataclass(frozen=True)
class Cell:
    """One check on one device.

    state:  pass; emulated (it passes, on other hardware); fail; xfail (only expected failures); not run.
    reason: why it is not a pass, in a line or several.
    """

    state: str = "not run"
    reason: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"{self.state!r} is no state of a check")


@dataclass(frozen=True)
class DeviceRun:
    """A row of the table. note: why nothing ran, or what to know of the run; machine: its processor."""

    device: str
    emulated: bool
    note: str = ""
    machine: str = ""
    seconds: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def ran(self) -> bool:
        return bool(self.checks)

    @property
    def failed(self) -> bool:
        return any(cell.state == "fail" for cell in self.checks.values())

    def cell(self, check: str) -> Cell:
        return self.checks.get(check, Cell(reason=self.note))


@dataclass(frozen=True)
class Matrix:
    """machines: where the rows come from, one table of facts each."""

    devices: Sequence[DeviceRun]
    machines: Sequence[Mapping[str, str]]

    @property
    def failed(self) -> bool:
        return any(device.failed for device in self.devices)

    def as_json(self) -> str:
        machines, devices = (
            [dict(machine) for machine in self.machines],
            [asdict(row) for row in self.devices],
        )
        return json.dumps({"format": FORMAT, "machines": machines, "devices": devices}, indent=1) + "\n"


def cells(results: Sequence[Mapping[str, Any]], emulated: bool) -> dict[str, Cell]:
    """A cell for each check, from the results that `session.py` wrote."""
    found: dict[str, Cell] = {}
    for check in CHECKS:
        own = [result for result in results if result["check"] == check]
        of: dict[str, list[Mapping[str, Any]]] = {}
        for result in own:
            of.setdefault(str(result["outcome"]), []).append(result)
        if "failed" in of:
            found[check] = Cell("fail", _told(of["failed"]))
        elif "xfailed" in of:
            found[check] = Cell("xfail", _told(of["xfailed"]))
        elif "passed" in of or "xpassed" in of:
            found[check] = Cell("emulated" if emulated else "pass")
        else:
            reasons = [*dict.fromkeys(str(r["reason"]) for r in own)]
            found[check] = Cell("not run", "\n".join(reasons) or "no test ran")
    return found


def _told(results: Sequence[Mapping[str, Any]]) -> str:
    """The first few with their reasons: a wrong mask fails dozens of tests at once."""
    lines = [f"{result['id']}: {result['reason']}" for result in results[:_TOLD]]
    more = len(results) - _TOLD
    return "\n".join([*lines, f"and {more} more"] if more > 0 else lines)


def read(path: Path) -> Matrix:
    """A matrix.json. Raises InvalidInput for a file that is not one."""
    return _STORED.read(path)


_STORED = Format(Matrix, "a result of specport matrix", error=InvalidInput, version=FORMAT)


def find(places: Sequence[Path]) -> list[Path]:
    """The matrix.json files in folders, at any depth, or named. Raises InvalidInput where there is none."""
    found: list[Path] = []
    for place in places:
        files = [place] if place.is_file() else sorted(place.rglob(FILE))
        if not files:
            raise InvalidInput(f"there is no {FILE} in {place}", "make one with: specport matrix --out DIR")
        found += files
    return found


def join(parts: Sequence[Matrix], profiles: Mapping[str, bool]) -> Matrix:
    """One table of several machines'. profiles: every device's name -> emulated, in the order to show them.

    A device keeps a row for each machine that ran it; what none ran keeps one row that says so.
    """
    rows = [device for part in parts for device in part.devices]
    names = [*dict.fromkeys([*profiles, *(row.device for row in rows)])]
    devices: list[DeviceRun] = []
    for name in names:
        own = [row for row in rows if row.device == name]
        nothing = DeviceRun(name, profiles.get(name, False), "no machine has reported on it")
        devices += [row for row in own if row.ran] or own[:1] or [nothing]
    machines: list[Mapping[str, str]] = []
    for machine in (machine for part in parts for machine in part.machines):
        if machine not in machines:
            machines.append(machine)
    return Matrix(devices, machines)
