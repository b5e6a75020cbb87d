"""The process's one OpenVINO Core, which stays to the end.

A Core gives the thread that first computes with it a stack for signals, and frees it when the Core goes, even
where a later Core has noted it as the one to go back to. With several Cores that come and go, the next signal
(Ctrl-C, for one) then ends the process with a segmentation fault. So nothing here makes a Core of its own,
and around packages that do, `signal_stack_kept` holds on to the stack of before.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino

_lock = threading.Lock()
_cores: list[openvino.Core] = []


class _Stack(ctypes.Structure):
    """Linux's `stack_t`."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def core() -> openvino.Core:
    """Return the Core of this process, made at the first call."""
    import openvino

    with _lock:
        if not _cores:
            _cores.append(openvino.Core())
        return _cores[0]


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """After the block, let this thread handle signals on the stack that it handled them on before."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaltstack(ctypes.byref(before), None)
