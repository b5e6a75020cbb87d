"""Tiny hybrid models for the tests, exported where the installed packages can do that."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from specport.conformance.models import tiny
from specport.models.source import ModelFiles
from specport.runtime.conversion import resolve
from support.processes.conversions import converting_here

KINDS = ("qwen3.5", "lfm2")


def skip_unless_exported() -> None:
    """Skip where optimum-intel exports no hybrids: it takes 2.2 with transformers 5.2, and no other."""
    pytest.importorskip("optimum.intel")
    found = importlib.util.find_spec("transformers.models.qwen3_5")
    import transformers

    if found is None or not transformers.__version__.startswith("5.2."):
        pytest.skip(
            f"hybrids are exported with transformers 5.2 and optimum-intel 2.2; "
            f"transformers {transformers.__version__} is installed"
        )


@contextmanager
def exported(root: Path, kind: str, precision: str = "fp32") -> Iterator[tuple[ModelFiles, ModelFiles]]:
    """Yield a tiny target of this kind and its draft, in a cache of their own below `root`."""
    skip_unless_exported()
    target, draft = tiny.write(root / kind, kind)
    with converting_here(root / "cache"):
        yield resolve(str(target), precision=precision), resolve(str(draft), precision=precision)
