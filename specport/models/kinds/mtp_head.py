"""What a bundle says of a trained module for multi-token prediction: an MTP head.

Its weights are the parts that `mtp.py` describes, in float16: those of a module that a model ships with.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_DEPTH = 16  # tokens that a head is trained to draft in a row, at most


@dataclass(frozen=True)
class MtpHead:
    """Say what a bundle's trained module is.

    depth: tokens that it was trained to draft in a row. loss: one of `quantize.train.losses.CHAIN_LOSSES`.
    Raises ValueError for a depth out of range.
    """

    depth: int
    loss: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= MAX_DEPTH:
            raise ValueError(f"depth is {self.depth}, not from 1 to {MAX_DEPTH}")
