"""One Core in the process, and signals that are handled while and after other packages make their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

from openvino import opset13
from specport.quantize.convert import openvino_core
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


# Products of shapes that were not there before, and what the process has grown by for them, in bytes.
GROWTH = """
import numpy as np, openvino, psutil
from openvino import opset13 as op
from specport.quantize.convert.openvino_core import core

x = op.parameter([-1, 64], openvino.Type.f32)
weights = op.constant(np.ones((64, 64), np.float32))
product = openvino.Model([op.matmul(x, weights, False, True)], [x])
run = {core}.compile_model(product, "CPU", {{"INFERENCE_NUM_THREADS": 1}})
for width in range(1, 901):
    run(np.zeros((width, 64), np.float32))
    if width == 300:
        before = psutil.Process().memory_info().rss
print(psutil.Process().memory_info().rss - before)
"""


def grown(core: str) -> int:
    code = GROWTH.format(core=core)
    return int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


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


def test_shapes_that_were_seen_take_little_memory() -> None:
    """Else a server that reads prompts of all lengths grows for hours."""
    assert grown("core()") < 0.3 * grown("openvino.Core()")


def test_a_runtime_that_does_not_know_the_bound_loads_models(monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    made = openvino.Core()
    monkeypatch.setattr(openvino_core, "_PLUGIN_BOUND", "CPU_NO_SUCH_NAME")
    openvino_core._bound(made)
    x = opset13.parameter([-1, 4], openvino.Type.f32)
    made.compile_model(openvino.Model([opset13.relu(x)], [x]), "CPU")
