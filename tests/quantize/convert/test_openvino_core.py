"""One Core in the process, and signals that are handled while and after other packages make their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

from specport.quantize.convert.openvino_core import core

# Two Cores that go in the order in which they came, the second of which notes the first's stack as its own
# before. A signal then comes.
SIGNALS = """
import signal
from contextlib import nullcontext
import openvino
from specport.quantize.convert.openvino_core import core, signal_stack_kept

signal.signal(signal.SIGINT, lambda *_: print("handled", flush=True))
with {context}:
    first = openvino.Core()
    first.get_property("CPU", "FULL_DEVICE_NAME")
    second = openvino.Core()
    second.get_property("CPU", "FULL_DEVICE_NAME")
    del first
    del second
signal.raise_signal(signal.SIGINT)
"""


def signalled(context: str) -> subprocess.CompletedProcess[str]:
    code = SIGNALS.format(context=context)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_there_is_one() -> None:
    assert core() is core()


def test_signals_are_handled_after_cores_of_other_packages() -> None:
    done = signalled("signal_stack_kept()")
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="Cores set stacks for signals on Linux")
def test_without_it_a_signal_ends_the_process() -> None:
    """Where this passes no longer, OpenVINO has mended it, and the module can go."""
    assert signalled("nullcontext()").returncode != 0
