"""OpenVINO: Intel Xeon and Core Ultra. The object behind the entry point; the work is in its modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specport.backends.openvino.probe import probe

from specport.runtime.devices.profiles import Profile
from specport.runtime.devices.registry import DeviceStatus, Loaded, LoadOptions, Weights

if TYPE_CHECKING:
    from specport.models.source import ModelFiles


class OpenVINOBackend:
    """The object behind the entry point `openvino`. Importing it does not import the runtime."""

    name = "openvino"
    weights: Weights = "ir"

    def probe(self, profiles: Sequence[Profile]) -> list[DeviceStatus]:
        return probe(profiles)

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        from specport.backends.openvino.load import load

        return load(files, options)


backend = OpenVINOBackend()
