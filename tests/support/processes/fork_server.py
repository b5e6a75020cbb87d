"""A process that has imported large packages, and forks on request; see `forked_jobs.py`.

`python fork_server.py serve ADDRESS PACKAGES...` is that process. It says "ready", and ends
when its stdin does.
`python fork_server.py ask ADDRESS MODULE ARGUMENTS...` runs a module as `python -m` would, in a fork that
has the pipes, the environment and the folder of the asking process. It ends as the fork does, and the fork
ends with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn


def ask(address: str, arguments: list[str]) -> int:
    """Return the exit code of a module that runs in a fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches those who wait for this process
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    data = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(data).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(data)
        code = int.from_bytes(connection.recv(4), "big", signed=True)
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


def serve(address: str, packages: list[str]) -> None:
    """Fork for each that asks, until stdin ends. Packages that do not import are left out."""
    del sys.path[0]  # the folder of this file
    # As in tests/conftest.py: one built for another torch would keep optimum from being imported.
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    from specport.quantize.convert import package_faults

    package_faults.mend()
    for package in packages:
        with contextlib.suppress(Exception):
            importlib.import_module(package)
    package_faults.mend()  # NNCF's class of loggers is not for those that are made in jobs
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    forks: dict[int, socket.socket] = {}  # process id -> who waits for it
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as selector:
        listening.bind(address)
        listening.listen()
        for waited_for in (listening, woken, sys.stdin):
            selector.register(waited_for, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    for process in forks:
                        os.kill(process, signal.SIGKILL)
                    return
                if key.fileobj is woken:
                    woken.recv(4096)
                    _tell_the_ended(forks, selector)
                elif key.fileobj is listening:
                    connection, _ = listening.accept()
                    process = _fork(connection)
                    forks[process] = connection
                    selector.register(connection, selectors.EVENT_READ, process)
                elif key.data in forks:  # who waited has gone
                    selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)


def _tell_the_ended(forks: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    for process in [*forks]:
        ended, status = os.waitpid(process, os.WNOHANG)
        if not ended:
            continue
        with forks.pop(process) as connection:
            with contextlib.suppress(KeyError):
                selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))


def _fork(connection: socket.socket) -> int:
    """Return the id of a new process that does what is asked for."""
    first, pipes, _, _ = socket.recv_fds(connection, 4, 3)
    length, data = int.from_bytes(first, "big"), b""
    while len(data) < length:
        data += connection.recv(length - len(data))
    process = os.fork()
    if not process:
        _become(pipes, **json.loads(data))
    for pipe in pipes:
        os.close(pipe)
    return process


def _become(pipes: list[int], arguments: list[str], environment: dict[str, Any], folder: str) -> NoReturn:
    """Run the module in this process, and end."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, pipe in enumerate(pipes):
            os.dup2(pipe, number)
        os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
