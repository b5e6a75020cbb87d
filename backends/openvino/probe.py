"""Report the OpenVINO devices of this machine, and what is missing where there are none. Never raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specport.backends.openvino.drivers import missing
from specport.quantize.convert.openvino_core import core

from specport.runtime.devices.profiles import Profile
from specport.runtime.devices.registry import DeviceStatus

if TYPE_CHECKING:
    import openvino as ov

INSTALL = "pip install 'specport[openvino]'"
_EMULATION = "no NPU is used: OpenVINO's NPU pipeline (NPUW) prepares the model and the CPU runs it"


def probe(profiles: Sequence[Profile]) -> list[DeviceStatus]:
    """Return one status for each profile, in order."""
    try:
        import openvino as ov

        known = core()
        found = set(known.available_devices)
        version = ov.get_version()
    except Exception as error:  # not installed or broken: report it, do not raise
        reason = f"OpenVINO cannot be imported: {error}"
        return [DeviceStatus(p.name, "openvino", p.device, False, reason, INSTALL) for p in profiles]
    return [_status(profile, known, found, version) for profile in profiles]


def computes_on(profile: Profile) -> str:
    """Return OpenVINO's name of the device that does the work: the CPU where it emulates other hardware."""
    return "CPU" if profile.emulated else profile.device


def _status(profile: Profile, core: ov.Core, found: set[str], version: str) -> DeviceStatus:
    device = computes_on(profile)
    if not any(name == device or name.split(".")[0] == device for name in found):
        reason, remedy = missing(device.split(".")[0])
        return DeviceStatus(profile.name, "openvino", profile.device, False, reason, remedy)
    if profile.emulated and not _has_plugin(core, profile.device):
        reason = f"this build of OpenVINO has no {profile.device} plugin to emulate"
        return DeviceStatus(profile.name, "openvino", profile.device, False, reason, INSTALL)
    name = str(core.get_property(device, "FULL_DEVICE_NAME"))
    facts = {
        "runtime": f"OpenVINO {version}",
        "name": f"EMULATED on {name}" if profile.emulated else name,
        "capabilities": ", ".join(core.get_property(device, "OPTIMIZATION_CAPABILITIES")),
    }
    if profile.emulated:
        facts["EMULATED"] = _EMULATION
    return DeviceStatus(profile.name, "openvino", profile.device, True, facts=facts)


def _has_plugin(core: ov.Core, device: str) -> bool:
    """Return whether the plugin responds, which it does even without a driver."""
    try:
        core.get_property(device, "SUPPORTED_PROPERTIES")
    except RuntimeError:
        return False
    return True
