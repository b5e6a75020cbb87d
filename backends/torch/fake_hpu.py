"""Emulate `habana_frameworks` on the CPU, where there is no Gaudi, with the rules of HPU graphs.

Count the graphs that a Gaudi would compile. Raise HpuError for what a graph cannot hold: a value that the
host waits for, a shape that depends on values, and a write through a view of a tensor. Times measured on the
emulation say nothing about Gaudi's speed; results are labelled emulated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators that wait for the device, or whose result has a shape that depends on values.
_SYNCS = frozenset(
    (
        "_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique",
        "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave.Tensor", "allclose",
    )
)  # fmt: skip
_HOST = ("tolist", "numpy", "item", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
# Operators that are not captured where they write through a view; reading a view is fine.
_WRITES = frozenset(("index_copy_", "scatter_", "copy_", "index_put_", "fill_", "zero_", "add_", "mul_"))


class HpuError(RuntimeError):
    """An operation that an HPU graph does not support."""


class Core:
    """Emulate `habana_frameworks.torch.core`; count the ends of lazy graphs."""

    def __init__(self) -> None:
        self.num_marks = 0

    def mark_step(self) -> None:
        self.num_marks += 1


class Hpu:
    """Emulate `habana_frameworks.torch.hpu`.

    compiled: the key of each compiled graph, in order: shapes of tensors and hashes of other arguments.
    """

    def __init__(self) -> None:
        self.compiled: list[Any] = []

    def wrap_in_hpu_graph(self, module: torch.nn.Module, disable_tensor_cache: bool = False) -> Any:
        """Replace the module's `forward`, as the real one does, and return it; a new key compiles a graph."""
        inner = module.forward
        seen: set[Any] = set()

        def forward(*arguments: Any) -> Any:
            key = tuple(_key(argument) for argument in arguments)
            if key not in seen:
                seen.add(key)
                self.compiled.append(key)
            with _Functions(), _Operators():
                return inner(*arguments)

        module.forward = forward
        return module


def _key(argument: Any) -> Any:
    return tuple(argument.shape) if isinstance(argument, torch.Tensor) else hash(argument)


def _masked(name: str, args: Any) -> bool:
    """Return whether an operator indexes with a boolean mask: its result's shape depends on values."""
    indices = args[1] if name == "index" else ()
    return any(index is not None and index.dtype == torch.bool for index in indices)


class _Functions(TorchFunctionMode):  # type: ignore[misc]
    """Raise HpuError where Python asks for a tensor's values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _HOST:
            raise HpuError(f"the host waits for the device inside a graph: Tensor.{name}")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):  # type: ignore[misc]
    """Raise HpuError for operators that a graph cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _SYNCS or str(func).removeprefix("aten.") in _SYNCS or _masked(name, args):
            raise HpuError(f"aten.{name} waits for the device, or its shape depends on values")
        if name in _WRITES and isinstance(args[0], torch.Tensor) and args[0]._is_view():
            raise HpuError(f"aten.{name} writes through a view, which HPU graphs do not capture")
        return func(*args, **(kwargs or {}))
