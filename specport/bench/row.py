"""One result of a benchmark as it is stored: a line of `rows.jsonl`."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from specport.bench.prompts import TOTALS
from specport.errors import InvalidInput
from specport.outside import Format
from specport.outside.numbers import Amount, Count, Positive, TokenId

Row = dict[str, Any]


class Counters(Struct):
    """The counters of `core.metrics` that figures are made from. Raises ValueError where they do not fit."""

    num_steps: Count
    num_accepted_tokens: Count
    drafted_per_depth: tuple[Annotated[int, Meta(ge=1, le=1 << 53)], ...]
    accepted_per_depth: tuple[Count, ...]
    decode_s: Amount
    draft_s: Amount
    verify_s: Amount

    def __post_init__(self) -> None:
        if len(self.drafted_per_depth) != len(self.accepted_per_depth):
            raise ValueError("its counts by depth have different lengths")


class Result(Struct):
    """The entries of a row. Raises ValueError where they do not fit."""

    id: str
    category: str
    method: str
    n: Count
    num_prompt_tokens: Count
    tokens: tuple[TokenId, ...]
    ttft_s: Amount
    total_s: Positive
    metrics: dict[str, Any]
    num_first: Count = 1

    def __post_init__(self) -> None:
        if self.category == TOTALS:
            raise ValueError(f"no category can be named {TOTALS}")
        if self.metrics:
            _COUNTERS.of(self.metrics, "metrics")


_COUNTERS = Format(Counters, "the counters of a result", error=InvalidInput)
RESULT = Format(
    Result, "a result of specport bench", "remove this line, or choose another --out", InvalidInput,
    most_bytes=1 << 30,
)  # fmt: skip
