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
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CACHE, _MESSAGES = "cache", "messages.txt"
_UNFINISHED = (".tmp", ".old", ".partial", ".part", ".lock")  # ends of names that say what they are
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
        env={**os.environ, "SPECPORT_CACHE": str(place / CACHE)}, **streams,
    )  # fmt: skip


def finish(command: Command, place: Path, more: Sequence[str] = ()) -> tuple[int, str, str]:
    """Run a command to its end; return its exit code, output and messages."""
    with open(place / _MESSAGES, "w+", encoding="utf-8", errors="replace") as messages:
        process = start(command, place, more, stdout=subprocess.PIPE, stderr=messages)
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
        messages.seek(0)
        return process.returncode, out, messages.read()


def kill_often(command: Command, template: Path, work: Path, times: int, seed: int = 0) -> Findings:
    """Kill a command `times` times, each time followed by a run to the end. Files are below `work`."""
    choose, found = random.Random(f"{seed} {command.name}"), Findings(command.name)
    place = work / command.name.replace(" ", "-")
    shutil.copytree(template, place)
    began = time.monotonic()
    code, out, said = finish(command, place)
    if code:
        found.problems.append(f"it fails without a kill: {said[-300:]}")
        return found
    found.seconds = time.monotonic() - began
    expected = command.result(place, out)
    late = 0
    while found.kills < times and late < times + 3:
        _begin_anew(command, template, place)
        moment = found.seconds * choose.uniform(0.1, 0.95)
        if not _killed(command, place, moment, group=found.kills % 2 == 1):
            late += 1  # it was faster this time
            found.seconds *= 0.8
            continue
        found.kills += 1
        found.moments.append(round(moment, 2))
        where = f"killed after {moment:.2f} s"
        found.problems += [f"{where}: {path} is half a file" for path in half_files(place)]
        began = time.monotonic()
        code, out, said = finish(command, place, command.resume)
        found.seconds = max(found.seconds * 0.9, time.monotonic() - began)
        if code:
            found.problems.append(f"{where}: the next run ends with {code}: {said[-300:]}")
            continue
        try:
            same = command.result(place, out) == expected
        except Exception as error:
            same = False
            found.problems.append(f"{where}: the result of the next run cannot be read: {error!r}")
        if not same:
            found.problems.append(f"{where}: the next run gives something else")
        changed = changed_files(command, template, place)
        found.problems += [f"{where}: {name} of the user changed" for name in changed]
        found.problems += [f"{where}: {path} is half a file after the next run" for path in half_files(place)]
        known = {*command.made, CACHE, _MESSAGES, *(path.name for path in template.iterdir())}
        found.left |= {path.name for path in place.iterdir() if path.name not in known}
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
        if any(part.endswith(_UNFINISHED) or part in ("tmp", "locks") for part in inside):
            continue
        try:
            _check(path)
        except Exception as error:
            found.append(Path(f"{path.relative_to(folder)} ({error})"))
    return found


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
