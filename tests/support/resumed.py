"""Resumed measurements: a folder of results belongs to one run, whose facts it keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specport.errors import InvalidInput

NAME = "run.json"


def claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """Make a folder the one of this run, or go on in it. Raises InvalidInput where it is that of another.

    facts: all that decides what the results are, such as the fingerprint of the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, asked = folder / NAME, json.loads(json.dumps(facts))
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        other = sorted(name for name in {*known, *asked} if known.get(name) != asked.get(name))
        if other:
            raise InvalidInput(
                f"{folder} holds results of another run; different: {', '.join(other)}", "name another --out"
            )
    elif any(folder.iterdir()):
        raise InvalidInput(f"{folder} does not say which model its results are of", "name another --out")
    else:
        path.write_text(json.dumps(asked, indent=1), encoding="utf-8")
