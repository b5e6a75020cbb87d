"""Long commands on a disk that fills up: a clear error, nothing half, and they go on when there is room.

    python tests/benchmarks/trust/full_disk.py --out full_disk.md          # Linux, as root: mounts a tmpfs

Each command runs on a disk with room for a share of what it writes. Then the disk is made larger, and the
same command runs again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.modules["torchvision"] = None  # type: ignore[assignment]  # tests need none: see conftest.py

from support.faults.kills import Command, changed_files, finish, half_files, undisturbed  # noqa: E402
from support.faults.long_commands import COMMANDS, prepared  # noqa: E402

_MB = 1 << 20
HEAD = "| command | writes | room for shares of it | exit codes | problems |\n|---|---|---|---|---|"


@dataclass
class Filled:
    """What a command did on full disks. said: its last message on each."""

    name: str
    written: int = 0
    shares: list[float] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """Mount an empty disk of `size` bytes."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


def used(place: Path) -> int:
    """Return the bytes in use on a mounted disk."""
    return shutil.disk_usage(place).used


def fill(
    command: Command, template: Path, work: Path, shares: list[float], known: Path | None = None
) -> Filled:
    """Run a command on disks with room for these shares of what it writes."""
    found, place, messages = Filled(command.name), work / "disk", work / "messages.txt"
    expected = undisturbed(command, template, work / "place", known)
    if expected.problem:
        found.problems.append(expected.problem)
        return found
    found.written = expected.written
    for share in shares:
        with disk(place, 1 << 30):
            shutil.copytree(template, place, dirs_exist_ok=True)
            _resize(place, used(place) + max(round(share * found.written) // 4096, 1) * 4096)
            code, _, said = finish(command, place, messages=messages)
            last = said.strip().splitlines()[-1] if said.strip() else ""
            found.shares.append(share)
            found.codes.append(code)
            found.said.append(last)
            told = "full" in last or "space" in last or "resum" in last
            if code == 0:
                continue  # what it could not keep was not needed
            if code != 2 or "Traceback" in said or not told:
                found.problems.append(f"{share}: exit {code}, {said[-400:]}")
            found.problems += [f"{share}: {path} is half a file" for path in half_files(place)]
            found.problems += [f"{share}: {name} changed" for name in changed_files(command, template, place)]
            _resize(place, 1 << 30)
            code, out, said = finish(command, place, command.resume, messages)
            if code:
                found.problems.append(f"{share}: with room again: exit {code}, {said[-300:]}")
            elif repr(command.result(place, out)) != expected.result:
                found.problems.append(f"{share}: with room again it gives something else")
    return found


def read_only(command: Command, template: Path, work: Path, known: Path | None = None) -> list[str]:
    """Run a command on a disk that cannot be written, and again when it can; return what went wrong."""
    expected, place = undisturbed(command, template, work / "place", known), work / "disk"
    messages = work / "messages.txt"
    if expected.problem:
        return [expected.problem]
    found: list[str] = []
    with disk(place, 1 << 30):
        shutil.copytree(template, place, dirs_exist_ok=True)
        _remount(place, "ro")
        code, _, said = finish(command, place, messages=messages)
        last = said.strip().splitlines()[-1] if said.strip() else ""
        if code not in (0, 2) or "Traceback" in said or (code == 2 and "ead-only" not in last):
            found.append(f"exit {code}, {said[-400:]}")
        _remount(place, "rw")
        code, out, said = finish(command, place, command.resume, messages)
        if code or repr(command.result(place, out)) != expected.result:
            found.append(f"written again: exit {code}, {said[-300:]}")
    return found


def _remount(place: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(place)], check=True)


def _resize(place: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


def row(found: Filled) -> str:
    """Return a row of the table."""
    shares = ", ".join(f"{share:.0%}" for share in found.shares)
    codes = ", ".join(map(str, found.codes))
    return f"| {found.name} | {found.written / _MB:.1f} MB | {shares} | {codes} | {len(found.problems)} |"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=[*COMMANDS])
    parser.add_argument("--share", action="append", type=float)
    parser.add_argument("--read-only", action="store_true", help="a disk that cannot be written instead")
    parser.add_argument("--template", type=Path, help="keep models and prompts in this folder for other runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names = args.only or [name for name in COMMANDS if COMMANDS[name].during is None]
    done = []
    with tempfile.TemporaryDirectory() as folder:
        template = prepared(args.template or Path(folder, "template"), names, whole=bool(args.template))
        for name in names:
            if args.read_only:
                known = args.template and args.template.with_suffix(".json")
                problems = read_only(COMMANDS[name], template, Path(folder), known)
                print(f"| {name} | {len(problems)} |", *problems, sep="\n    ", flush=True)
                continue
            shares = args.share or [0.0, 0.5, 0.9]
            known = args.template and args.template.with_suffix(".json")
            done.append(fill(COMMANDS[name], template, Path(folder), shares, known))
            print(row(done[-1]), *done[-1].said, *done[-1].problems, sep="\n    ", flush=True)
            if args.out is not None:
                args.out.write_text("\n".join([HEAD, *map(row, done)]) + "\n", encoding="utf-8")
    sys.exit(any(each.problems for each in done))


if __name__ == "__main__":
    main()
