"""Which accelerators of torch are here. Never raises, and imports no torch: a listing must be quick."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from specport.profiles import Profile
from specport.registry import DeviceStatus

LATER = "the torch backend does not decode yet in this version"


def probe(profiles: Sequence[Profile]) -> list[DeviceStatus]:
    """One status for each profile, in order."""
    return [_status(profile) for profile in profiles]


def _status(profile: Profile) -> DeviceStatus:
    if profile.device == "cuda":
        here = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
        missing = ("no NVIDIA driver was found", "install the NVIDIA driver")
        package, remedy = "torch", "pip install 'specport[cuda]'"
    else:
        here = shutil.which("hl-smi") is not None or any(Path("/dev").glob("accel/accel_controlD*"))
        missing = ("no Gaudi driver was found", "install the Intel Gaudi software and run on a Gaudi machine")
        package, remedy = (
            "habana_frameworks",
            "install Intel Gaudi's PyTorch and specport[gaudi]",
        )
    reason = LATER
    if not here:
        reason, remedy = missing
    elif find_spec(package) is None:
        reason = f"the package {package} is not installed"
    else:
        remedy = "use --device xeon"
    return DeviceStatus(profile.name, "torch", profile.device, False, reason, remedy)
