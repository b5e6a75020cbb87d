"""Entry point of the process in which a long job runs: `python -m specport.jobs.entry TASK`, see `worker.py`.

TASK is a JSON file with the fields of `worker.Job`, "verbose": bool and "arguments": {...}. The process
writes one JSON message per line to stdout: {"stage", "share"} for progress, {"result"} or {"error", "hint"}
at the end. stdin is a pipe from the parent; its end means that the parent no longer waits for the result.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specport.errors import SpecportError
from specport.models.os_errors import cause

MEMORY = ("there is not enough memory", "close other programs, or use a smaller model")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "DefaultCPUAllocator")


def main() -> int:
    """Run the job. Return the exit code: 0 = done, 2 = failed with an error message, 130 = stopped."""
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    module, _, function = task["function"].partition(":")
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to stdout, where only messages may go
    for name in ("SIGINT", "SIGHUP", *(() if "RANK" in os.environ else ("SIGTERM",))):
        if hasattr(signal, name):  # they reach the parent too, which closes the pipe
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    stopped = threading.Event()
    threading.Thread(target=_watch_parent, args=(stopped, task["grace_s"]), daemon=True).start()
    if not task["verbose"]:
        warnings.simplefilter("ignore")
    reports = os.environ.get("RANK", "0") == "0"  # the first of several processes that train together

    def send(message: dict[str, Any]) -> None:
        if reports:
            out.write(json.dumps(message) + "\n")
            out.flush()

    def progress(stage: str, share: float) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        send({"stage": stage, "share": share})

    try:
        job: Callable[..., Any] = getattr(importlib.import_module(module), function)
        send({"result": job(**task["arguments"], progress=progress)})
    except SpecportError as error:
        send({"error": error.message, "hint": error.hint})
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        send({"error": MEMORY[0], "hint": MEMORY[1]})
        return 2
    except OSError as error:
        message, hint = cause(error)
        send({"error": message, "hint": hint})
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _watch_parent(stopped: threading.Event, grace: float) -> None:
    """Set `stopped` when stdin ends, and end the process after `grace` seconds."""
    while os.read(0, 1):  # unbuffered: a lock of a buffered reader that is held at exit aborts Python
        pass
    stopped.set()
    if grace:
        threading.Event().wait(grace)
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # everything is written; shutting torch down takes a second
