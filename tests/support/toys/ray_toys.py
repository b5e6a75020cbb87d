"""What processes of a Ray cluster load in place of models.

PROGRAM runs the `specport` command; replicas that it starts load a slow toy, whose steps take 0.01 s.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import specport
from specport.cli import main
from support.toys import toy_pipeline
from support.toys.toy_model import ToyModel
from support.toys.toy_pipeline import ToyTokenizer

_RUN = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from support.toys import ray_toys; sys.exit(ray_toys.program())"
)
PROGRAM = [sys.executable, "-c", _RUN, str(Path(__file__).parents[2])]


def load(model: str | None = None, **options: Any) -> Any:
    """Called by replicas in place of `specport.load`."""
    os.environ["TOY_STEP_SECONDS"] = "0.01"  # a cluster's processes do not have the environment of a test
    return toy_pipeline.load(model, **options)


def program() -> int:
    specport.load = load
    return main()


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

    model = ToyModel(max_context=4096)
    model.during_step = die
    return model, ToyTokenizer()


def broken(threads: int) -> Any:
    from specport.errors import ModelError

    raise ModelError("there is no such model", "name another")
