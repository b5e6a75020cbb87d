"""The draft heads that come with the package are whole, and say how they were made."""

from __future__ import annotations

from pathlib import Path

import pytest

from specport.models import bundle
from specport.models.shipped import FOLDER

HEADS = sorted(path for path in FOLDER.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", HEADS, ids=lambda path: path.name)
def test_a_shipped_head_can_be_read(folder: Path) -> None:
    found = bundle.read(folder, thorough=True, keep=True)
    assert found.recurrent is not None and found.provenance["command"].startswith("python examples/")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16 << 20


def test_there_are_some() -> None:
    assert HEADS
