"""The process's one OpenVINO Core, which stays to the end.

A Core gives the thread that first computes with it a stack for signals, and frees it when the Core goes, even
where a later Core has noted it as the one to go back to. With several Cores that come and go, the next signal
(Ctrl-C, for one) then ends the process with a segmentation fault. So nothing here makes a Core of its own,
and around packages that do, `signal_stack_kept` holds on to the stack of before.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino

_PLUGIN_BOUND, _ONEDNN_BOUND = "CPU_RUNTIME_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"

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
            os.environ.setdefault(_ONEDNN_BOUND, "256")  # of all models; read at the first product
            made = openvino.Core()
            _bound(made)
            _cores.append(made)
        return _cores[0]


def _bound(made: openvino.Core) -> None:
    """Bound the code that the CPU plug-in keeps of each shape of a product that it has seen, for all models.

    It keeps 5,000 of a kind by default, and oneDNN below it 1,024 with some 0.2 MB each: the memory of a
    process that reads prompts of all lengths grows for hours. A step of a transformer has some six shapes of
    products, so 128 are those of 20 widths of steps. The plug-in has no public name for its bound; one that
    does not know the name keeps its own.
    """
    made.get_versions("CPU")  # loads it: before that, it takes any name, and refuses the first model
    with suppress(RuntimeError):
        made.set_property("CPU", {_PLUGIN_BOUND: 128})


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
