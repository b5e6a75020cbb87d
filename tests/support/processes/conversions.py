"""Conversion of tiny models in this process.

A process of its own imports torch, transformers, optimum and NNCF anew, which takes about as long as the
conversion itself. Jobs in processes of their own are tested in test_export.py and test_build.py.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from specport.progress import Progress, silent
from specport.runtime import conversion


def convert_here(
    source: Path,
    target: Path,
    precision: str,
    *,
    progress: Progress = silent,
    trust_remote_code: bool = False,
    weights: str = "ir",
    **_: object,
) -> dict[str, str]:
    """Do as `conversion.convert`, in this process and in silence."""
    from specport.quantize.convert import export

    make = export.export if weights == "ir" else export.save
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return make(source, target, precision, progress=progress, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def converting_here(cache: Path) -> Iterator[None]:
    """Convert in this process, into a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECPORT_CACHE", str(cache))
        patch.setattr(conversion, "convert", convert_here)
        yield
