"""What processes of a Ray cluster load in place of a target that writes text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from support.toy_model import ToyModel
from support.toy_pipeline import ToyTokenizer


def target(threads: int, dies: str = "") -> tuple[ToyModel, ToyTokenizer]:
    """Return the target and its tokenizer.

    dies: a file; who finds it in its tenth step removes it, and dies.
    """
    steps = 0

    def die() -> None:
        nonlocal steps
        steps += 1
        if steps == 10 and dies and Path(dies).is_file():
            Path(dies).unlink()
            os._exit(1)

    return ToyModel(max_context=4096, during_step=die), ToyTokenizer()


def broken(threads: int) -> Any:
    from specport.errors import ModelError

    raise ModelError("there is no such model", "name another")
