"""Room on the disk: asked for before a conversion begins, and named as the cause where writing fails."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specport.errors import ModelError
from specport.models.precision import Precision

_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}  # of a weight, without its scales
_FAILED = "iostream error"  # all that OpenVINO says of a write that fails


def check_room(target: Path, num_weights: int, stored: int, precision: Precision) -> None:
    """Raise ModelError where the disk of the folder `target` cannot hold what a conversion writes.

    stored: bytes of the weights before their compression. They are on the disk beside the result while it is
    made. A lower bound: scales and layers in a higher precision come on top.
    """
    result = int(_BYTES[precision.base] * num_weights)
    needed = result + (stored if precision.base.startswith("int") else 0)
    free = shutil.disk_usage(target).free
    if free < needed:
        raise ModelError(
            f"converting this model takes {needed / 1e9:.1f} GB of disk below {target.parent}, of which "
            f"{result / 1e9:.1f} GB stay; {free / 1e9:.1f} GB are free",
            "free some space, or set SPECPORT_CACHE to a folder on another disk",
        )


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Raise OSError for a full disk where OpenVINO fails to write a model; it does not say why."""
    try:
        yield
    except RuntimeError as error:
        if _FAILED not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
