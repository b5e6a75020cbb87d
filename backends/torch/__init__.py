"""Torch: CUDA and Gaudi. This version recognises the hardware; it does not decode on it yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specport.backends.torch.probe import LATER, probe

from specport.errors import DeviceError
from specport.profiles import Profile
from specport.registry import DeviceStatus, Loaded, LoadOptions

if TYPE_CHECKING:
    from specport.models.source import ModelFiles


class TorchBackend:
    """The object behind the entry point `torch`."""

    name = "torch"

    def probe(self, profiles: Sequence[Profile]) -> list[DeviceStatus]:
        return probe(profiles)

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        raise DeviceError(LATER, "use --device xeon")


backend = TorchBackend()
