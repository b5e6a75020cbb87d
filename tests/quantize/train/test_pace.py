"""What every recipe checks: numbers out of range are refused when a training is asked for, before text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from specport.quantize.heads.recurrent import Request as Head
from specport.quantize.mtp.request import Request as Mtp
from specport.quantize.pipo.recipe import Recipe as Pipo
from specport.quantize.request import Request as Draft
from specport.quantize.speech.recipe import Recipe as Speech
from specport.quantize.train.diffusion.recipe import Recipe as Diffusion
from specport.quantize.train.layerskip.recipe import Recipe as LayerSkip

from specport.errors import InvalidInput

KINDS = [Draft, Head, Mtp, Diffusion, LayerSkip, Pipo, Speech]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__module__.removeprefix("specport.quantize."))
@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n in ("epochs", "learning_rate") for v in (-1.0, math.inf, math.nan)]
    + [("seed", -1), ("seed", 1 << 63)],
)
def test_numbers_out_of_range_are_refused(kind: Callable[..., Any], name: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"{name.replace('_', '.')} is {value}"):
        kind(**{name: value})


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_draft_can_be_left_untrained(kind: Callable[..., Any]) -> None:
    if kind is Draft:
        kind(epochs=0.0)
    else:
        with pytest.raises(InvalidInput, match=r"epochs is 0\.0; it must be greater than 0"):
            kind(epochs=0.0)
