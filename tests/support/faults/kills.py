"""Kill long commands at random moments, and look at what they leave behind.

A command runs as users run it, in a process of its own, in a folder of its own with a cache of its own. It is
killed with SIGKILL (TerminateProcess on Windows): no handler runs. After that

- no file has its final name and half of its content,
- the user's files are what they were,
- the same command succeeds, and gives what a run that nobody kills gives.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import specport.backends
import specport.quantize

import specport

_TESTS = Path(__file__).parents[2]
CACHE, _MESSAGES = "cache", "messages.txt"
_UNFINISHED = (".tmp", ".old", ".partial", ".part", ".lock")  # ends of names that say what they are
_BESIDE = re.compile(r"\..*\.[0-9a-f]{8}$")  # folders that take another's place when they are whole
_LATEST_S = 300.0


@dataclass(frozen=True)
class Command:
    """A command to kill.

    arguments: after `specport`; the working folder is the place.
    program:   what Python runs instead of `specport`.
    resume:    more arguments of the run after a kill.
    result:    what the command was for, read from its place and its output; equal for equal runs.
    made:      what the command makes or replaces, in its place: before the next kill it is as it was. Other
               files are the user's.
    during:    what is done with the process while it runs, instead of waiting for it; ends with its end.
    """

    name: str
    arguments: Sequence[str]
    result: Callable[[Path, str], Any]
    made: Sequence[str] = ()
    resume: Sequence[str] = ()
    during: Callable[[subprocess.Popen[str], Path], str] | None = None
    program: Sequence[str] = ("-m", "specport")


@dataclass
class Findings:
    """What kills of one command led to. problems: what must not be; left: names of files that stay behind."""

    name: str
    seconds: float = 0.0
    kills: int = 0
    problems: list[str] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    moments: list[float] = field(default_factory=list)


def start(command: Command, place: Path, more: Sequence[str] = (), **streams: Any) -> subprocess.Popen[str]:
    """Start a command in its place."""
    return subprocess.Popen(
        [sys.executable, *command.program, *command.arguments, *more], cwd=place, encoding="utf-8",
        errors="replace", stdin=subprocess.DEVNULL, start_new_session=os.name != "nt",
        env={**os.environ, "SPECPORT_CACHE": str(place / CACHE), "PYTHONPATH": str(_TESTS)}, **streams,
    )  # fmt: skip


def finish(
    command: Command, place: Path, more: Sequence[str] = (), messages: Path | None = None
) -> tuple[int, str, str]:
    """Run a command to its end; return its exit code, output and messages, which stand in its place."""
    with open(messages or place / _MESSAGES, "w+", encoding="utf-8", errors="replace") as said:
        process = start(command, place, more, stdout=subprocess.PIPE, stderr=said)
        try:
            if command.during is not None:
                out = command.during(process, place)
                process.wait(_LATEST_S)
            else:
                out, _ = process.communicate(timeout=_LATEST_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        return process.returncode, out, said.read()


@dataclass(frozen=True)
class Undisturbed:
    """What a run to the end takes and gives. written: bytes that are there after it, and were not before.

    problem: its message where it fails.
    """

    seconds: float = 0.0
    written: int = 0
    result: str = ""
    problem: str = ""


def undisturbed(command: Command, template: Path, place: Path, known: Path | None = None) -> Undisturbed:
    """Run a command in a new place, or return what `known`, a file that is kept up to date, says of it.

    Of other code it says nothing: that may give something else.
    """
    code = _code()
    stored = json.loads(known.read_text(encoding="utf-8")) if known and known.exists() else {}
    if stored.get("code") != code:
        stored = {"code": code}
    if command.name in stored:
        return Undisturbed(**stored[command.name])
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place)
    began, before = time.monotonic(), _size(place)
    status, out, said = finish(command, place)
    if status:
        return Undisturbed(problem=f"it fails without being disturbed: {said[-600:]}")
    seconds = time.monotonic() - began
    found = Undisturbed(seconds, max(_size(place) - before, 4096), repr(command.result(place, out)))
    shutil.rmtree(place)
    if known:
        known.write_text(json.dumps({**stored, command.name: asdict(found)}, indent=1), encoding="utf-8")
    return found


def _code() -> str:
    """Return a digest of the package's source."""
    packages = (specport, specport.backends, specport.quantize)
    folders = [Path(folder) for package in packages for folder in package.__path__]
    files = sorted({path for folder in folders for path in folder.rglob("*.py")})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _size(place: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in _files(place))


def kill_often(
    command: Command, template: Path, work: Path, times: int, seed: int = 0, chain: int = 1,
    known: Path | None = None,
) -> Findings:  # fmt: skip
    """Kill a command `times` times. Files are below `work`.

    chain: so many kills, one after the other, are followed by a run to the end.
    """
    choose, found = random.Random(f"{seed} {command.name}"), Findings(command.name)
    place = work / command.name.replace(" ", "-")
    expected = undisturbed(command, template, place, known)
    if expected.problem:
        found.problems.append(expected.problem)
        return found
    found.seconds = expected.seconds
    shutil.copytree(template, place)
    late = 0
    while found.kills < times and late < times + 3:
        _begin_anew(command, template, place)
        moments: list[float] = []
        for _ in range(min(chain, times - found.kills)):
            moment = found.seconds * choose.uniform(0.1, 0.95)
            if not _killed(command, place, moment, group=(found.kills + len(moments)) % 2 == 1):
                late += 1  # it was faster this time
                found.seconds *= 0.8
                break
            moments.append(round(moment, 2))
            found.problems += [f"killed at {moments} s: {path} is half a file" for path in half_files(place)]
        found.kills += len(moments)
        found.moments += moments
        if not moments:
            continue
        where = f"killed at {moments} s"
        code, out, said = finish(command, place, command.resume)
        # Killed when all was written, the next run says that it is there; and it is whole.
        if code and not (code == 2 and "is there already" in said):
            found.problems.append(f"{where}: the next run ends with {code}: {said[-600:]}")
            continue
        try:
            result = repr(command.result(place, out))
        except Exception as error:
            result = ""
            found.problems.append(f"{where}: the result of the next run cannot be read: {error!r}")
        if result != expected.result:
            found.problems.append(f"{where}: the next run gives something else: {result[:300]}")
        changed = changed_files(command, template, place)
        found.problems += [f"{where}: {name} of the user changed" for name in changed]
        found.problems += [f"{where}: {path} is half a file after the next run" for path in half_files(place)]
        known_names = {*command.made, CACHE, _MESSAGES, *(path.name for path in template.iterdir())}
        found.left |= {path.name for path in place.iterdir() if path.name not in known_names}
        found.left |= {path.name for path in _files(place) if path.name.endswith(_UNFINISHED[:4])}
    shutil.rmtree(place, ignore_errors=True)
    return found


def _killed(command: Command, place: Path, moment: float, group: bool) -> bool:
    """Run a command and kill it. Return False where it ended by itself before.

    group: its processes all together, where that can be done; else it alone, and they have to notice.
    """
    process = start(command, place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment)
        return False
    if group and os.name != "nt":
        import signal

        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    return True


def _begin_anew(command: Command, template: Path, place: Path) -> None:
    """Take away what the command made, and put back the cache and what else it replaced."""
    for name in (*command.made, CACHE):
        path = place / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        for left in (*place.glob(f".{name}.*"), *place.glob(f"{name}.*")):  # what was left unfinished
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if (template / name).is_dir():
            shutil.copytree(template / name, path)


def changed_files(command: Command, template: Path, place: Path) -> list[str]:
    """Return the user's files that are not what they were: all but the cache and what the command makes."""
    names = (path.relative_to(template) for path in _files(template))
    users = (name for name in names if name.parts[0] not in (*command.made, CACHE))
    return [str(name) for name in users if digest(template / name) != digest(place / name)]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def digest(path: Path) -> str:
    """Return a hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "gone"


def half_files(folder: Path) -> list[Path]:
    """Return files of a final name that are not whole. Work in progress has names and folders that say so."""
    found = []
    for path in _files(folder):
        inside = path.relative_to(folder).parts
        if any(_is_unfinished(part) for part in inside):
            continue
        try:
            _check(path)
        except Exception as error:
            found.append(Path(f"{path.relative_to(folder)} ({error})"))
    return found


def _is_unfinished(name: str) -> bool:
    return name.endswith(_UNFINISHED) or name in ("tmp", "locks") or bool(_BESIDE.match(name))


def _check(path: Path) -> None:
    """Raise an exception for a file that its own library does not read to the end."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".jsonl":  # the last line may be half: it is written as it grows, and read so
        for line in path.read_bytes().split(b"\n")[:-1]:
            json.loads(line)
    elif path.suffix == ".xml":
        if not path.read_bytes().rstrip().endswith(b"</net>"):
            raise ValueError("it does not end")
    elif path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        load_file(path)
    elif path.suffix in (".npy", ".npz"):
        import numpy as np

        np.load(path, allow_pickle=False)
