"""How much memory a cache may take, and how a user says it."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from specport.errors import InvalidInput
from specport.runtime import memory


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**10, total=10**12))


def test_shares_are_of_what_is_free() -> None:
    assert memory.free_bytes() == 10**10
    assert (memory.default_share("target"), memory.default_share("draft")) == (4 * 10**9, 2 * 10**9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 4 * 10**9), ("512MB", 512 * 10**6), ("1.5 gb", 15 * 10**8), ("2GiB", 2**31),
        ("64kib", 2**16), ("1TB", 10**12), ("30%", 3 * 10**9), (" 0.5 % ", 5 * 10**7), ("100%", 10**10),
    ],
)  # fmt: skip
def test_amounts(text: str, expected: int) -> None:
    assert memory.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "4", "GB", "-1GB", "0GB", "0%", "101%", "4 lots", "1e3MB", "4GB free", "nan%", "٤GB"]
)
def test_what_is_no_amount_is_said(text: str) -> None:
    with pytest.raises(InvalidInput, match="4GB"):
        memory.parse(text)
