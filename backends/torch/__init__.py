"""Run models with torch on CPUs, CUDA and Gaudi: the object behind the entry point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specport.backends.torch.probe import probe
from specport.quantize.convert import package_faults

from specport.runtime.devices.profiles import Profile
from specport.runtime.devices.registry import DeviceStatus, Loaded, LoadOptions, Weights

if TYPE_CHECKING:
    from specport.models.source import ModelFiles


class TorchBackend:
    """Implement `Backend`. Importing this module does not import torch."""

    name = "torch"
    weights: Weights = "huggingface"

    def probe(self, profiles: Sequence[Profile]) -> list[DeviceStatus]:
        return probe(profiles)

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        package_faults.mend()
        from specport.backends.torch.load import load

        return load(files, options)


backend = TorchBackend()
