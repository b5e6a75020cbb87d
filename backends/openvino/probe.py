"""What OpenVINO finds on this machine, and what is missing where it finds nothing. Never raises."""

from __future__ import annotations

from collections.abc import Sequence

from specport.profiles import Profile
from specport.registry import DeviceStatus

INSTALL = "pip install 'specport[openvino]'"
# The runtime lists a device only when its driver answers.
_REMEDIES = {
    "CPU": "OpenVINO's CPU plugin runs on x86-64 and Arm64 processors",
    "GPU": "install the Intel GPU driver (Linux: intel-opencl-icd, and add yourself to the group render)",
    "NPU": "install the Intel NPU driver (Linux: intel-driver-compiler-npu and intel-level-zero-npu, "
    "and add yourself to the group render, which owns /dev/accel/accel0)",
}
# Devices that are found but that this version cannot decode on yet.
_LATER = {"NPU": "decoding on the NPU needs static shapes, which this version does not have yet"}


def probe(profiles: Sequence[Profile]) -> list[DeviceStatus]:
    """One status for each profile, in order."""
    try:
        import openvino as ov

        core = ov.Core()
        found = set(core.available_devices)
        version = ov.get_version()
    except Exception as error:  # not installed, or installed and broken: both are said, not raised
        reason = f"OpenVINO cannot be imported: {error}"
        return [DeviceStatus(p.name, "openvino", p.device, False, reason, INSTALL) for p in profiles]
    statuses = []
    for profile in profiles:
        device = profile.device
        kind = device.split(".")[0]
        if not any(name == device or name.split(".")[0] == device for name in found):
            reason = f"OpenVINO finds no {kind} here"
            remedy = _REMEDIES.get(kind, "")
            statuses.append(DeviceStatus(profile.name, "openvino", device, False, reason, remedy))
            continue
        facts = {
            "runtime": f"OpenVINO {version}",
            "name": str(core.get_property(device, "FULL_DEVICE_NAME")),
            "capabilities": ", ".join(core.get_property(device, "OPTIMIZATION_CAPABILITIES")),
        }
        reason = _LATER.get(kind, "")
        remedy = "use --device core-ultra-cpu" if reason else ""
        statuses.append(DeviceStatus(profile.name, "openvino", device, not reason, reason, remedy, facts))
    return statuses
