"""Run a step or a chain of one shape on a device: directly, as a CUDA graph, or as an HPU graph.

A runner takes the packed inputs on the host and returns the outputs on the device. They are valid until its
next call. `reset` is called after the cache's tensors were replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from specport.backends.torch.slots.step import StepModule

from specport.errors import DeviceError

if TYPE_CHECKING:
    from torch import Tensor

Output = tuple["Tensor", Mapping[int, "Tensor"]]  # of a `StepModule`
# A `StepModule` or a `chain.ChainModule`, called with the packed input and a shape.
Module = Callable[["Tensor", Any], Any]


class Runner(Protocol):
    """Run steps, or chains, of any shape."""

    @property
    def captures(self) -> bool:
        """Return whether it captures graphs, which hold the addresses of the cache's tensors."""
        ...

    @property
    def module(self) -> Module:
        """The module that it runs."""
        ...

    def __call__(self, packed: NDArray[np.int64], shape: Hashable) -> Any: ...

    def reset(self) -> None: ...

    @property
    def num_graphs(self) -> int:
        """Return the number of graphs captured so far; 0 where there are none."""
        ...


class Eager:
    """Run every step directly: CPU, and CUDA without graphs."""

    captures = False
    num_graphs = 0

    def __init__(self, module: Module, device: str) -> None:
        self.module, self._device = module, device

    def __call__(self, packed: NDArray[np.int64], shape: Hashable) -> Any:
        with torch.inference_mode():  # less overhead per operator than no_grad
            return self.module(torch.from_numpy(packed).to(self._device), shape)

    def reset(self) -> None:
        pass


def compiled(module: StepModule, device: str) -> StepModule:
    """Return the step compiled by torch.compile, for use in any runner.

    It runs in few kernels and takes tens of seconds to compile for each new shape. Raises DeviceError where
    torch.compile does not work.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # a missing compiler, header or Triton each raises its own type
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        needs = "a C++ compiler (g++) and Python's headers" if device == "cpu" else "Triton and a C compiler"
        raise DeviceError(
            f"torch.compile does not work here: {reason}", f"install {needs}, or unset SPECPORT_TORCH_COMPILE"
        ) from error
    # Beyond its limit of compilations, torch silently runs the step uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    found: StepModule = torch.compile(module)
    return found


@dataclass(frozen=True)
class _Captured:
    graph: Any
    packed: Tensor
    output: Any


class CudaGraphs:
    """Run one CUDA graph per shape, captured when the shape first appears.

    Graphs share one memory pool, since they run one after the other ("CUDA graphs" in PyTorch's CUDA notes).
    """

    captures = True

    def __init__(self, module: Module) -> None:
        self.module = module
        self._graphs: dict[Hashable, _Captured] = {}
        self.reset()

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def __call__(self, packed: NDArray[np.int64], shape: Hashable) -> Any:
        host = torch.from_numpy(packed).pin_memory()
        found = self._graphs.get(shape)
        if found is None:
            found = self._graphs[shape] = self._capture(host.cuda(), shape)
        found.packed.copy_(host, non_blocking=True)
        found.graph.replay()
        return found.output

    def _capture(self, packed: Tensor, shape: Hashable) -> _Captured:
        # The warm-up writes the same cache rows as the replay, so nothing has to be undone.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(2):  # warm-up: libraries choose kernels and allocate workspaces
                self.module(packed, shape)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool), torch.no_grad():
            output = self.module(packed, shape)
        return _Captured(graph, packed, output)

    def reset(self) -> None:
        self._graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()  # a pool is freed with its last graph


class HpuGraphs:
    """Run one HPU graph per shape.

    Gaudi's wrapper stores them by the shapes of tensors and the hash of every other argument ("Run Inference
    Using HPU Graphs" in Intel Gaudi's documentation).

    hpu, core: the modules `habana_frameworks.torch.hpu` and `habana_frameworks.torch.core`, or an emulation.
    """

    captures = True

    def __init__(self, module: Module, hpu: Any, core: Any, device: str) -> None:
        self.module, self._hpu, self._core, self._device = module, hpu, core, device
        self._shapes: set[Hashable] = set()
        self.reset()

    @property
    def num_graphs(self) -> int:
        return len(self._shapes)

    def __call__(self, packed: NDArray[np.int64], shape: Hashable) -> Any:
        self._shapes.add(shape)
        with torch.no_grad():
            inputs = torch.from_numpy(packed).to(self._device)
            self._core.mark_step()  # keeps the copy out of the graph
            result = self._wrapped(inputs, shape)
            self._core.mark_step()
        return result

    def reset(self) -> None:
        self._shapes.clear()
        # Inputs are small and new at each call, so cached copies would only cost memory.
        self._wrapped = self._hpu.wrap_in_hpu_graph(_Fresh(self.module), disable_tensor_cache=True)


class _Fresh(torch.nn.Module):  # type: ignore[misc]
    """Wrap the step in a new object, since Gaudi's wrapper replaces `forward` of its argument."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, packed: Tensor, shape: Hashable) -> Any:
        return self.module(packed, shape)


def timed(runner: Runner, packed: NDArray[np.int64], shape: Hashable, device: str) -> tuple[Any, float]:
    """Return the outputs, and the seconds until they are complete on the device."""
    start = time.perf_counter()
    output = runner(packed, shape)
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "hpu":
        torch.hpu.synchronize()
    return output, time.perf_counter() - start
