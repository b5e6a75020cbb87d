"""A disk that is too small is said before the work, or plainly at the write that fails."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino as ov
from openvino import opset15 as ops
from specport.quantize.convert import disk

from specport.errors import ModelError
from specport.models.os_errors import cause
from specport.models.precision import parse


@pytest.mark.parametrize(
    ("precision", "needed"), [("int4", 2.5e9), ("int8:sym", 3e9), ("fp16", 2e9), ("fp32", 4e9)]
)
def test_a_conversion_that_does_not_fit_is_refused_before_it_begins(
    precision: str, needed: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = int(needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    disk.check_room(tmp_path, 10**9, 2 * 10**9, parse(precision))
    free -= 10**8
    with pytest.raises(
        ModelError, match=rf"takes {needed / 1e9:.1f} GB of disk .* {free / 1e9:.1f} GB are free"
    ):
        disk.check_room(tmp_path, 10**9, 2 * 10**9, parse(precision))


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """Let writes behind byte `most` of a file fail; Python ignores the signal."""
    resource = pytest.importorskip("resource", reason="POSIX limits the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_is_said_plainly(tmp_path: Path) -> None:
    given = ops.parameter([1, 512], np.float32)
    product = ops.matmul(given, ops.constant(np.ones((512, 512), np.float32)), False, False)
    model = ov.Model([product], [given])
    with small_files(1 << 16), pytest.raises(OSError, match="No space") as caught, disk.writing(tmp_path):
        ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    assert caught.value.errno == errno.ENOSPC
    assert cause(caught.value).message.startswith(f"the disk is full at {tmp_path}")


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), disk.writing(tmp_path):
        raise RuntimeError("out of memory")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), disk.writing(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
