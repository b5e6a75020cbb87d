"""What an error of the operating system is told as."""

from __future__ import annotations

import errno

import pytest

from specport.models.os_errors import cause, is_local


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "a.bin"),
        OSError("884862 requested and 2048 written"),  # numpy's `tofile`
        OSError("I/O error: No space left on device (os error 28)"),  # safetensors'
    ],
)
def test_a_full_disk_is_named_whoever_tells_of_it(error: OSError) -> None:
    found = cause(error)
    assert found.message.startswith("the disk is full") and "free some space" in found.hint
    assert is_local(error)


def test_other_numbers_are_no_full_disk() -> None:
    assert "full" not in cause(OSError("2048 written")).message
