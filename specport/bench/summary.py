"""Compute figures from rows: speed-ups over plain decoding, by prompt, category and method.

decode speed-up     = TPOT of plain decoding / TPOT of the method, both on the same prompt
end-to-end speed-up = the same ratio of total time (prompt included) per output token

Plain decoding is measured before and after the other methods; the base is its mean. The row "plain" holds the
ratio of the later to the earlier run, which shows the drift of the machine. Geometric means are over prompts.
A prompt with an answer of one token has no TPOT and is left out of decode figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specport.calibration.methods import PLAIN

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """Hold the figures of one method on one set of prompts; None where nothing was measured.

    decode, end_to_end: geometric means of the speed-ups.
    low, high: quartiles of the prompts' decode speed-ups.
    total:     decode speed-up by total time over total tokens.
    ttft_ms, tpot_ms: medians over prompts.
    same:      number of prompts whose tokens equal those of plain decoding.
    first_difference: median index of the first different token over the other prompts.
    """

    prompts: int
    decode: float | None
    low: float | None
    high: float | None
    total: float | None
    end_to_end: float
    ttft_ms: float
    tpot_ms: float
    mean_acceptance_length: float | None
    acceptance_per_position: tuple[float, ...]
    draft_share: float | None
    verify_share: float | None
    same: int
    first_difference: float | None


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, Figures]]:
    """Return method -> category (and "all") -> figures. Methods and categories keep the order of the rows."""
    plain = {row["id"]: [] for row in rows}  # type: dict[str, list[Row]]
    for row in rows:
        if row["method"] == PLAIN:
            plain[row["id"]].append(row)
    usable = [row for row in rows if plain[row["id"]]]
    methods = dict.fromkeys(row["method"] for row in usable)
    table: dict[str, dict[str, Figures]] = {}
    for method in methods:
        own = [row for row in usable if row["method"] == method]
        categories = dict.fromkeys(row["category"] for row in own)
        groups = {"all": own, **{c: [row for row in own if row["category"] == c] for c in categories}}
        table[method] = {name: _figures(group, plain) for name, group in groups.items()}
    return table


def _figures(rows: Sequence[Row], plain: Mapping[str, Sequence[Row]]) -> Figures:
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row["id"], []).append(row)
    decode, whole, base_s, own_s = [], [], 0.0, 0.0
    for key, measured in by_prompt.items():
        base, own = plain[key], measured
        if rows[0]["method"] == PLAIN:  # odd n = the later run
            base = [row for row in measured if row["n"] % 2 == 0]
            own = [row for row in measured if row["n"] % 2] or base
        whole.append(_mean(map(_per_token, base)) / _mean(map(_per_token, own)))
        if all(tpot(row) for row in [*base, *own]):
            base_tpot, own_tpot = _mean(map(tpot, base)), _mean(map(tpot, own))
            decode.append(base_tpot / own_tpot)
            steps = _mean(len(row["tokens"]) - 1 for row in own)
            base_s, own_s = base_s + base_tpot * steps, own_s + own_tpot * steps
    low, high = _quartiles(decode)
    differences = [first_difference(row["tokens"], plain[row["id"]][0]["tokens"]) for row in rows]
    found = [d for d in differences if d is not None]
    differing = {row["id"] for row, d in zip(rows, differences, strict=True) if d is not None}
    metrics = [row["metrics"] for row in rows if row["metrics"]]
    return Figures(
        prompts=len(by_prompt),
        decode=statistics.geometric_mean(decode) if decode else None,
        low=low,
        high=high,
        total=base_s / own_s if own_s else None,
        end_to_end=statistics.geometric_mean(whole),
        ttft_ms=1e3 * statistics.median(row["ttft_s"] for row in rows),
        tpot_ms=1e3 * statistics.median(map(tpot, rows)),
        mean_acceptance_length=_acceptance_length(metrics),
        acceptance_per_position=_per_position(metrics),
        draft_share=_share(metrics, "draft_s"),
        verify_share=_share(metrics, "verify_s"),
        same=len(by_prompt) - len(differing),
        first_difference=statistics.median(found) if found else None,
    )


def tpot(row: Row) -> float:
    """Return the seconds per output token after the first ones; 0 when there are no others."""
    count = len(row["tokens"]) - int(row.get("num_first", 1))
    return float(row["total_s"] - row["ttft_s"]) / count if count > 0 else 0.0


def first_difference(tokens: Sequence[int], plain: Sequence[int]) -> int | None:
    """Return the index of the first output token that differs from plain decoding, or None."""
    for i, (a, b) in enumerate(zip(tokens, plain, strict=False)):
        if a != b:
            return i
    return None if len(tokens) == len(plain) else min(len(tokens), len(plain))


def _per_token(row: Row) -> float:
    return float(row["total_s"]) / max(1, len(row["tokens"]))


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _quartiles(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def _acceptance_length(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """Return tokens per step over all steps, including those without draft tokens."""
    steps = sum(m["num_steps"] for m in metrics)
    return 1.0 + sum(m["num_accepted_tokens"] for m in metrics) / steps if steps else None


def _per_position(metrics: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    depth = max((len(m["drafted_per_depth"]) for m in metrics), default=0)
    rates = []
    for d in range(depth):
        drafted = sum(m["drafted_per_depth"][d] for m in metrics if d < len(m["drafted_per_depth"]))
        accepted = sum(m["accepted_per_depth"][d] for m in metrics if d < len(m["accepted_per_depth"]))
        rates.append(accepted / drafted)
    return tuple(rates)


def _share(metrics: Sequence[Mapping[str, Any]], name: str) -> float | None:
    whole = sum(m["decode_s"] for m in metrics)
    return sum(m[name] for m in metrics) / whole if whole else None
