"""Runs conversion and training in processes of their own.

Their libraries need gigabytes, print what they like and take seconds to import; none of that may reach the
process that runs the model, and when the system ends one for want of memory, someone must be left to say so.
The child ends when its parent does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from specport.errors import ModelError
from specport.jobs.entry import JOBS, MEMORY
from specport.progress import Progress, silent

_CHILD = "specport.jobs.entry"


def convert(
    source: Path,
    target: Path,
    precision: str,
    *,
    progress: Progress = silent,
    trust_remote_code: bool = False,
    verbose: bool = False,
    weights: str = "ir",
) -> dict[str, str]:
    """Convert a .gguf file or Hugging Face folder to IR in the empty folder `target`.

    weights: "ir", or "huggingface" for a folder with safetensors. Returns the versions of the packages that
    did it. Raises ModelError; `target` is then the caller's to throw away.
    """
    arguments: dict[str, Any] = {"source": str(source), "target": str(target), "precision": precision}
    arguments["trust_remote_code"] = trust_remote_code
    job = "export" if weights == "ir" else "save"
    return dict(run(job, arguments, f"{source} cannot be converted", progress=progress, verbose=verbose))


def run(
    job: str,
    arguments: Mapping[str, Any],
    failed: str,
    *,
    processes: int = 1,
    progress: Progress = silent,
    verbose: bool = False,
) -> Any:
    """What a job of `entry.JOBS` returns for these arguments, all of them plain data.

    processes: more than one are started by `accelerate launch`, with the user's own `accelerate config`.
    failed:    how the error begins where the child could not say what went wrong. Raises ModelError.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as noise:
        task = Path(folder, "task.json")
        text = json.dumps({"job": job, "verbose": verbose, "arguments": dict(arguments)})
        task.write_text(text, encoding="utf-8")
        child = subprocess.Popen(
            [*_launcher(processes), _CHILD, str(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if verbose else noise,
            env=environment, text=True, encoding="utf-8",
        )  # fmt: skip
        try:
            last = _follow(child, progress)
            child.wait()
        except BaseException:  # Ctrl-C as well: nothing may go on behind the user's back
            _end(child, JOBS[job][2])
            raise
        finally:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if "result" in last and child.returncode == 0:
            return last["result"]
        if "error" in last:
            raise ModelError(last["error"], last["hint"])
        if child.returncode in (-9, 137):
            raise ModelError(f"{failed}: the system ended it, most likely because {MEMORY[0]}", MEMORY[1])
        noise.seek(0)
        lines = noise.read().decode("utf-8", errors="replace").strip().splitlines()
        reason = lines[-1][:300] if lines else f"it ended with code {child.returncode}"
        raise ModelError(f"{failed}: {reason}", "run again with --verbose to see all of it")


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    return [*command, "--module"]


def _end(child: subprocess.Popen[str], grace: float) -> None:
    """Let the child put its work in order for so many seconds, then end it."""
    if grace and child.stdin is not None:
        child.stdin.close()
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            child.wait(grace)
    child.kill()
    child.wait()


def _follow(child: subprocess.Popen[str], progress: Progress) -> dict[str, Any]:
    """Pass the child's progress on; returns its last message."""
    last: dict[str, Any] = {}
    assert child.stdout is not None
    for line in child.stdout:
        try:
            last = json.loads(line)
        except ValueError:
            continue
        if "stage" in last:
            progress(str(last["stage"]), float(last["share"]))
    return last
