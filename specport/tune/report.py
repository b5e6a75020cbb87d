"""The result of a tuning. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from specport.calibration.other_load import BUSY_CORES
from specport.tune.choose import Verdict
from specport.tune.weights import Weights


@dataclass(frozen=True)
class Report:
    """Hold the result of a tuning.

    precision: of the weights that drafters were measured with; weights: the formats that were compared.
    promises:  draft model -> speed-up that was expected of it before it was tried.
    plain:     TTFT and TPOT of plain decoding in ms, and its drift in the last measurement.
    untried:   step -> why it was left out.
    other_cores: cores that other programs used meanwhile, at most in any measurement.
    path:      file of the kept choice.
    """

    model: str
    device: str
    processor: str
    exact: bool
    precision: str
    weights: tuple[Weights, ...]
    promises: Mapping[str, float]
    verdict: Verdict
    plain: Mapping[str, float]
    untried: Mapping[str, str]
    prompts: int
    max_new_tokens: int
    seconds: float
    other_cores: float
    path: Path

    @property
    def busy(self) -> bool:
        """Whether other programs kept the machine busy."""
        return self.other_cores >= BUSY_CORES
