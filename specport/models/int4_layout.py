"""Read from an IR how many INT4 weights share a scale. Knows no runtime.

OpenVINO's integer kernels quantise activations in groups as well (`DYNAMIC_QUANTIZATION_GROUP_SIZE`). A group
of activations that is larger than a group of weights, or than a row, switches these kernels off for that
layer and doubles its time; a smaller one than needed costs up to 15 % of a step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LARGEST = 256  # group of activations; for whole rows nothing larger was faster
_SMALLEST = 16  # the kernels take multiples of it
_CONSTANT = re.compile(rb'element_type="[iu]4" shape="([\d, ]+)"')


@dataclass(frozen=True)
class Int4Layout:
    """Hold how the INT4 weights of a model share scales.

    group: greatest common divisor of the groups; 0 = no weight has several groups in a row.
    row:   inputs of the narrowest layer with one scale for a whole row; 0 = there is none.
    """

    group: int = 0
    row: int = 0

    @property
    def dynamic_group(self) -> int | None:
        """Return the number of activations that share a scale, so that every layer runs on integers.

        None = the model has no INT4 weights, or groups that the integer kernels do not take.
        """
        largest = min((LARGEST, *filter(None, (self.row, self.group))))
        if not (self.group or self.row):
            return None
        fits = [1 << n for n in range(largest.bit_length()) if self.group % (1 << n) == 0]
        return fits[-1] if fits[-1] >= _SMALLEST else None

    @property
    def widest_dynamic_group(self) -> int | None:
        """Return the largest group of activations that still runs on integers; None as for `dynamic_group`.

        For whole rows it is the narrowest row.
        """
        if self.group or not self.row:
            return self.dynamic_group
        return self.row // _SMALLEST * _SMALLEST or None


def read_layout(xml: Path) -> Int4Layout:
    """Return the layout of an IR's INT4 weights. Raises OSError."""
    found = xml.stat()
    return _read(xml, found.st_mtime_ns, found.st_size)


@cache
def _read(xml: Path, _mtime: int, _size: int) -> Int4Layout:
    layers = [*_layers(xml.read_bytes())]
    return Int4Layout(
        group=math.gcd(*(size for size, groups in layers if groups > 1)),
        row=min((size for size, groups in layers if groups == 1), default=0),
    )


def _layers(xml: bytes) -> Iterator[tuple[int, int]]:
    """Yield the size and the number of each weight's groups in a row.

    NNCF stores grouped weights as [out, groups, group] and others as [out, in]. Zero points end with 1.
    """
    for shape in {match[1] for match in _CONSTANT.finditer(xml)}:
        extents = [int(extent) for extent in shape.split(b",")]
        if len(extents) in (2, 3) and extents[-1] > 1:
            yield extents[-1], extents[1] if len(extents) == 3 else 1
