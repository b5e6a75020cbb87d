"""Explain why OpenVINO lists no GPU or NPU, and how to fix it: kernel driver, permissions, libraries.

OpenVINO lists a device only when its whole stack works, and does not report which part fails. Sources:
OpenVINO's pages "Configurations for Intel GPU" and "... NPU", github.com/intel/linux-npu-driver
(docs/overview.md) and github.com/intel/compute-runtime.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Stack:
    """Describe the software between OpenVINO and a kind of device.

    nodes:  device files that the kernel driver creates below /dev; driver: its name.
    kernel, libraries, windows: fixes for each part of it.
    """

    nodes: str
    driver: str
    kernel: str
    libraries: str
    windows: str


_STACKS = {
    "GPU": _Stack(
        "dri/renderD*",
        "i915 or xe",
        "on a machine with Intel graphics, run a Linux whose i915 or xe driver supports them (Arc: 6.2+);"
        " in a container, pass /dev/dri through",
        "install Intel's compute runtime (Ubuntu: sudo apt install intel-opencl-icd ocl-icd-libopencl1;"
        " others: github.com/intel/compute-runtime/releases)",
        "install the Intel graphics driver, from Windows Update or"
        " intel.com/content/www/us/en/support/articles/000005629;"
        " Device Manager then shows it under Display adapters",
    ),
    "NPU": _Stack(
        "accel/accel[0-9]*",
        "intel_vpu",
        "on a Core Ultra, run Linux 6.6 or newer with the firmware (intel-fw-npu) and load the driver:"
        " sudo modprobe intel_vpu (see sudo dmesg); in a container, pass /dev/accel through",
        "install intel-fw-npu, intel-level-zero-npu and intel-driver-compiler-npu from"
        " github.com/intel/linux-npu-driver/releases, and Level Zero (Ubuntu: sudo apt install libze1)",
        "install the Intel NPU driver, from Windows Update or intel.com/content/www/us/en/download/794734;"
        " Device Manager then shows Intel(R) AI Boost under Neural processors",
    ),
}


def missing(kind: str, platform: str = sys.platform, dev: Path = Path("/dev")) -> tuple[str, str]:
    """Return why there is no device of this kind (CPU, GPU, NPU), and the fix.

    platform: as `sys.platform`.
    dev:      the folder of the kernel's device files.
    """
    reason = f"OpenVINO finds no {kind} here"
    stack = _STACKS.get(kind)
    if stack is None:
        return reason, "OpenVINO's CPU plugin runs on x86-64 and Arm64 processors"
    if platform == "win32":
        return reason, stack.windows
    if not platform.startswith("linux"):
        return reason, "OpenVINO drives Intel GPUs and NPUs on Linux and Windows only"
    nodes = sorted(dev.glob(stack.nodes))
    if kind == "GPU" and (dev / "dxg").exists():  # the Windows driver, passed through to WSL
        nodes.append(dev / "dxg")
    if not nodes:
        return f"{reason}: the kernel driver ({stack.driver}) shows no device", stack.kernel
    if not any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
        return (
            f"{reason}: this user has no permission to open {nodes[0]}",
            "sudo usermod -a -G render $USER, then log in again (ls -l shows which group owns the file)",
        )
    where = f"{nodes[0]} can be opened: libraries are missing, or it is a device of another vendor"
    return f"{reason}, though {where}", stack.libraries
