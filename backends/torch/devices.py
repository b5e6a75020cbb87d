"""Devices of torch: how each runs its steps, and how much memory it has free."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from specport.backends.torch.runners import CudaGraphs, Eager, HpuGraphs, Module, Runner

from specport.errors import DeviceError
from specport.runtime.caches import memory
from specport.runtime.devices.profiles import Profile

LAZY = "PT_HPU_LAZY_MODE"
COMPILE = "SPECPORT_TORCH_COMPILE"


@dataclass(frozen=True)
class Place:
    """Describe a device.

    device: torch's name for it.
    runner: what runs its steps.
    free:   returns the free bytes.
    whole:  whether every pass covers all slots.
    notes:  messages for the user.
    """

    device: str
    runner: Callable[[Module], Runner]
    free: Callable[[], int]
    whole: bool = False
    notes: tuple[str, ...] = ()


def place(profile: Profile) -> Place:
    """Return the device of a profile. Raises DeviceError where its software is not set up."""
    if profile.device == "cuda":
        return Place("cuda", CudaGraphs, lambda: int(torch.cuda.mem_get_info()[0]))
    if profile.device == "hpu":
        return _emulated_gaudi() if profile.emulated else _gaudi()
    return Place("cpu", lambda module: Eager(module, "cpu"), memory.free_bytes)


def compiles(profile: Profile) -> bool:
    """Return whether the user asks for compiled steps and the device has them (not Gaudi's lazy mode)."""
    return os.environ.get(COMPILE, "0") not in ("", "0") and profile.device != "hpu"


def name_of(profile: Profile) -> str:
    """Return the device's processor name; "" for the machine's CPU."""
    if profile.device == "cuda":
        return str(torch.cuda.get_device_name())
    if profile.device == "hpu" and not profile.emulated:
        return str(torch.hpu.get_device_name())
    return ""


def _gaudi() -> Place:
    """Return the Gaudi device in lazy mode.

    HPU graphs need lazy mode. It is off by default and is read when the bridge is imported.
    """
    notes: tuple[str, ...] = ()
    if os.environ.get(LAZY) != "1":
        if "habana_frameworks.torch" in sys.modules:
            raise DeviceError(
                f"Gaudi's torch bridge was loaded without lazy mode, which HPU graphs need ({LAZY}=1)",
                f"set {LAZY}=1 before Python starts",
            )
        os.environ[LAZY] = "1"
        notes = (f"{LAZY} was set to 1: HPU graphs need lazy mode",)
    from habana_frameworks.torch import core, hpu

    def runner(module: Module) -> Runner:
        return HpuGraphs(module, hpu, core, "hpu")

    return Place("hpu", runner, lambda: int(hpu.mem_get_info()[0]), whole=True, notes=notes)


def _emulated_gaudi() -> Place:
    from specport.backends.torch import fake_hpu

    def runner(module: Module) -> Runner:
        return HpuGraphs(module, fake_hpu.Hpu(), fake_hpu.Core(), "cpu")

    return Place("cpu", runner, memory.free_bytes, whole=True)
