"""The process in which long jobs run: `python -m specport.jobs.entry TASK`, started by `worker.py`.

TASK is a JSON file, {"job": name, "verbose": bool, "arguments": {...}}. One JSON message a line goes to
stdout: {"stage", "share"} on the way, {"result"} or {"error", "hint"} at the end. stdin is a pipe from the
parent: its end means that nobody waits for the result any more.
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

# name -> (module, function, seconds that it may take to put its work in order when it is to stop)
JOBS = {
    "export": ("specport.quantize.convert.export", "export", 0.0),
    "save": ("specport.quantize.convert.export", "save", 0.0),
    "heal": ("specport.quantize.train.heal", "heal", 120.0),
    "layerskip": ("specport.quantize.train.layerskip.training", "layerskip", 120.0),
}
MEMORY = ("there is not enough memory", "close other programs, or take a smaller model")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "DefaultCPUAllocator")


def main() -> int:
    """Exit code 0: done; 2: told why not; 130: stopped."""
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    module, function, grace = JOBS[task["job"]]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the libraries print to stdout; only messages may go there
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which then closes the pipe
    stopped = threading.Event()
    threading.Thread(target=_watch, args=(stopped, grace), daemon=True).start()
    if not task["verbose"]:
        warnings.simplefilter("ignore")
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes that train together, the first

    def say(message: dict[str, Any]) -> None:
        if speaks:
            out.write(json.dumps(message) + "\n")
            out.flush()

    def progress(stage: str, share: float) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        say({"stage": stage, "share": share})

    try:
        job: Callable[..., Any] = getattr(importlib.import_module(module), function)
        say({"result": job(**task["arguments"], progress=progress)})
    except SpecportError as error:
        say({"error": error.message, "hint": error.hint})
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        say({"error": MEMORY[0], "hint": MEMORY[1]})
        return 2
    except OSError as error:
        why = cause(error)
        say({"error": why.message, "hint": why.hint})
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _watch(stopped: threading.Event, grace: float) -> None:
    while os.read(0, 1):  # unbuffered: a buffered reader's lock is held at exit, which aborts Python
        pass
    stopped.set()
    if grace:
        threading.Event().wait(grace)
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # everything is written; tearing torch down takes a second
