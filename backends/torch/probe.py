"""Report the torch devices of this machine. Never raises, and does not import torch, so that it is fast."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from specport.runtime.devices.profiles import Profile
from specport.runtime.devices.registry import DeviceStatus

_CPU = "pip install torch transformers"
_CUDA = "pip install 'specport[cuda]'"
_GAUDI = "install Intel Gaudi's PyTorch and specport[gaudi]"


def probe(profiles: Sequence[Profile]) -> list[DeviceStatus]:
    """Return one status for each profile, in order."""
    return [_status(profile) for profile in profiles]


def _status(profile: Profile) -> DeviceStatus:
    reason, remedy = _missing(profile)
    facts = {}
    if not reason:
        facts["runtime"] = f"torch {version('torch')}, transformers {version('transformers')}"
        if profile.emulated:
            facts["name"] = "EMULATED on the processor"
        elif profile.device == "hpu":
            facts["lazy mode"] = os.environ.get("PT_HPU_LAZY_MODE", "0 (set to 1 when a model is loaded)")
    return DeviceStatus(profile.name, "torch", profile.device, not reason, reason, remedy, facts)


def _missing(profile: Profile) -> tuple[str, str]:
    """Return what is missing and the fix; ("", "") = nothing."""
    needed, remedy = ["torch", "transformers"], _CPU
    if profile.device == "cuda":
        remedy = _CUDA
        if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia/version").exists():
            return "no NVIDIA driver was found", "install the NVIDIA driver"
    elif profile.device == "hpu" and not profile.emulated:
        needed, remedy = ["torch", "habana_frameworks", "transformers"], _GAUDI
        if shutil.which("hl-smi") is None and not any(Path("/dev").glob("accel/accel_controlD*")):
            return (
                "no Gaudi driver was found",
                "install the Intel Gaudi software and run on a Gaudi machine",
            )
    for package in needed:
        if find_spec(package) is None:
            return f"the package {package} is not installed", remedy
    if profile.device == "cuda" and _is_cpu_build():
        return "torch is installed without CUDA", _CUDA
    return "", ""


def _is_cpu_build() -> bool:
    """Return whether torch is a CPU build, which its version states."""
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False
