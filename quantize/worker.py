"""Runs a conversion in a process of its own.

The converter's libraries need gigabytes, print what they like and take seconds to import; none of that
may reach the process that runs the model. The child ends when its parent does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from specport.errors import ModelError
from specport.models.progress import Progress, silent


def convert(
    source: Path,
    target: Path,
    precision: str,
    *,
    progress: Progress = silent,
    trust_remote_code: bool = False,
    verbose: bool = False,
) -> dict[str, str]:
    """Convert a .gguf file or Hugging Face folder to IR in the empty folder `target`.

    Returns the versions of the packages that did it. Raises ModelError; `target` is then the caller's
    to throw away.
    """
    task: dict[str, Any] = {"source": str(source), "target": str(target), "precision": precision}
    task |= {"trust_remote_code": trust_remote_code, "verbose": verbose}
    command = [sys.executable, "-m", "specport.quantize.export", json.dumps(task)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with tempfile.TemporaryFile() as noise:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if verbose else noise,
            env=environment, text=True, encoding="utf-8",
        )  # fmt: skip
        try:
            last = _follow(child, progress)
            child.wait()
        except BaseException:  # Ctrl-C as well: nothing may go on behind the user's back
            child.kill()
            child.wait()
            raise
        finally:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if "versions" in last and child.returncode == 0:
            return dict(last["versions"])
        if "error" in last:
            raise ModelError(last["error"], last["hint"])
        if child.returncode in (-9, 137):
            raise ModelError(
                f"{source} cannot be converted: the system ended the converter, most likely out of memory",
                "close other programs or convert on a larger machine",
            )
        noise.seek(0)
        lines = noise.read().decode("utf-8", errors="replace").strip().splitlines()
        reason = lines[-1][:300] if lines else f"the converter ended with code {child.returncode}"
        raise ModelError(
            f"{source} cannot be converted: {reason}", "run again with --verbose to see all of it"
        )


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
