"""Runs conversion and training in processes of their own.

Their libraries need gigabytes, print to stdout and take seconds to import, which must not affect the process
that runs the model. When the system kills a job for lack of memory, this process is left to report it. A job
ends when its parent does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specport.errors import ModelError
from specport.jobs.entry import MEMORY
from specport.progress import Progress, silent

_ENTRY = "specport.jobs.entry"


@dataclass(frozen=True)
class Job:
    """A function that runs in a process of its own.

    function: "module:function"; called with plain data by name and with `progress`; returns plain data.
    grace_s:  seconds that it may take to save its work when it is stopped.
    """

    function: str
    grace_s: float = 0.0


def run(
    job: Job,
    arguments: Mapping[str, Any],
    failed: str,
    *,
    processes: int = 1,
    progress: Progress = silent,
    verbose: bool = False,
) -> Any:
    """Run a job in a process of its own, and return its result.

    arguments: plain data.
    failed:    beginning of the error message where the job could not report the cause.
    processes: more than one are started by `accelerate launch`, with the user's `accelerate config`.
    Raises ModelError.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as log:
        task = Path(folder, "task.json")
        text = json.dumps({**asdict(job), "verbose": verbose, "arguments": dict(arguments)})
        task.write_text(text, encoding="utf-8")
        process = subprocess.Popen(
            [*_launcher(processes), _ENTRY, str(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if verbose else log,
            env=environment, text=True, encoding="utf-8",
        )  # fmt: skip
        try:
            last = _follow(process, progress)
            process.wait()
        except BaseException:  # Ctrl-C as well: no job may outlive its caller
            _end(process, job.grace_s)
            raise
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if "result" in last and process.returncode == 0:
            return last["result"]
        if "error" in last:
            raise ModelError(last["error"], last["hint"])
        if process.returncode in (-9, 137):
            raise ModelError(
                f"{failed}: the system ended the process, most likely because {MEMORY[0]}", MEMORY[1]
            )
        log.seek(0)
        lines = log.read().decode("utf-8", errors="replace").strip().splitlines()
        reason = lines[-1][:300] if lines else f"the process ended with code {process.returncode}"
        raise ModelError(f"{failed}: {reason}", "run again with --verbose to see all its output")


def _launcher(processes: int) -> list[str]:
    """Return the beginning of a command that runs a module in this many processes."""
    if processes == 1:
        return [sys.executable, "-m"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    return [*command, "--module"]


def _end(process: subprocess.Popen[str], grace: float) -> None:
    """Give the process `grace` seconds to save its work, then kill it."""
    if grace and process.stdin is not None:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(grace)
    process.kill()
    process.wait()


def _follow(process: subprocess.Popen[str], progress: Progress) -> dict[str, Any]:
    """Pass on the progress of the process; return its last message."""
    last: dict[str, Any] = {}
    assert process.stdout is not None
    for line in process.stdout:
        try:
            last = json.loads(line)
        except ValueError:
            continue
        if "stage" in last:
            progress(str(last["stage"]), float(last["share"]))
    return last
