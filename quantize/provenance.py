"""How a draft was made: the command, the time, and the versions of what made it."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime, timezone
from pathlib import PurePath
from typing import Any

from specport.runtime.versions import installed

_PACKAGES = ("openvino", "nncf", "optimum-intel", "optuna", "transformers", "torch")


def provenance(**facts: Any) -> dict[str, Any]:
    """Return the facts of a build that ends now, and what else is known of it."""
    return {
        "command": command(),
        "date": now(),
        "versions": installed(_PACKAGES),
        **facts,
    }


def now() -> str:
    """Return the time as ISO 8601, to the second, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def command() -> str:
    """Return the command that runs, as a shell takes it: of specport, or of a Python script."""
    program = PurePath(sys.argv[0])
    ours = program.stem == "specport" or program.parts[-2:] == ("specport", "__main__.py")
    script = program.name if program.is_absolute() else program.as_posix()  # no path of this machine
    start = ["specport"] if ours else ["python", script]
    return shlex.join([*start, *sys.argv[1:]])
