"""Explain one answer: where its time went, what each drafter brought, and whether speculation paid.

The time of plain decoding is estimated: for each token after the first a plain step, and the loop around it.
What a plain step costs is known from the planner, which corrects measured costs by each step, or else from
the answer's own steps without a draft. With tiered verification it is the mean of the target's calls, most of
which are wider.

    saved  = accepted tokens * (plain step + loop around a step)
    spent  = drafting + what steps with a draft took beyond plain ones
    net    = saved - spent

A draft that tiered verification accepts whole has no token behind it: it saves one step less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from specport.core.metrics import Metrics
from specport.core.ports import TierCounts

_LEAST_PLAIN = 4  # steps without a draft from which a plain step's cost is taken
_EVEN = 0.02  # a difference of this share is called none


@dataclass(frozen=True)
class Part:
    """Hold one part of the time of an answer. share: of the whole."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Brought:
    """Hold what one drafter brought.

    calls, rounds: times that it was asked, and steps that verified its draft.
    drafted, accepted: tokens; each accepted one saves a plain step, with the exception above.
    draft_s:  its own time, reading the prompt included.
    wider_s:  what its steps took beyond plain ones. saved_s, net_s: see above.
    The last three are None where the cost of a plain step is not known.
    """

    drafter: str
    calls: int
    rounds: int
    drafted: int
    accepted: int
    draft_s: float
    wider_s: float | None
    saved_s: float | None
    net_s: float | None


@dataclass(frozen=True)
class Explanation:
    """Hold the account of one answer.

    parts:   of the time from the request to the last token, in order.
    plain_step_s: seconds of a plain step; plain_s: of all tokens after the first, by plain decoding. Both are
             estimates; None = unknown.
    decode_s: the time that they took.
    tiers:   what each tier decided, of tiered verification; None = the target verified all.
    verdict: one sentence on whether speculation paid.
    """

    parts: tuple[Part, ...]
    drafters: tuple[Brought, ...]
    plain_step_s: float | None
    plain_s: float | None
    decode_s: float
    verdict: str
    tiers: TierCounts | None = None

    @property
    def speed_up(self) -> float | None:
        """Return the estimated time of plain decoding over the time that it took."""
        return self.plain_s / self.decode_s if self.plain_s is not None and self.decode_s > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return {**asdict(self), "speed_up": self.speed_up}


def explain(metrics: Metrics) -> Explanation:
    """Return the account of an answer, by its counters."""
    step = plain_step(metrics)
    loop = _rest(metrics) / metrics.num_steps if metrics.num_steps else 0.0
    # Not counted by drafter: all of them are taken to have the same share.
    without = metrics.tiers.open_rounds / metrics.num_drafts if metrics.tiers and metrics.num_drafts else 0.0
    drafters = tuple(
        Brought(
            name, own.calls, own.rounds, own.drafted, own.accepted, own.seconds,
            *_worth(own.accepted - without * own.rounds, own.seconds, own.verify_s, own.rounds, step, loop),
        )
        for name, own in metrics.drafting.by.items()
    )  # fmt: skip
    plain = None if step is None else max(0, metrics.num_output_tokens - 1) * (step + loop)
    whole = metrics.ttft_s + metrics.decode_s
    parts = tuple(Part(name, s, s / whole if whole > 0 else 0.0) for name, s in _parts(metrics))
    if metrics.second_tokens:
        verdict = _unverified(metrics)
    elif metrics.denoised:
        verdict = _denoised(metrics)
    else:
        verdict = _verdict(metrics, drafters, plain)
    return Explanation(parts, drafters, step, plain, metrics.decode_s, verdict, metrics.tiers)


def plain_step(metrics: Metrics) -> float | None:
    """Return the seconds of a step of one token in this answer, or None where nothing tells."""
    drafting, tiers = metrics.drafting, metrics.tiers
    if metrics.denoised:
        return None
    if tiers is not None:
        return tiers.full_s / tiers.full_calls if tiers.full_calls else None
    if drafting.rounds:
        return drafting.plain_s / drafting.rounds
    plain = metrics.num_steps - metrics.num_drafts
    if plain < _LEAST_PLAIN and metrics.num_drafts:
        return None
    with_draft = sum(own.verify_s for own in drafting.by.values())
    return (metrics.verify_s - with_draft) / plain if plain else None


def _worth(
    saved_steps: float, draft_s: float, verify_s: float, rounds: int, step: float | None, loop: float
) -> tuple[float | None, float | None, float | None]:
    """Return `Brought.wider_s`, `saved_s` and `net_s`."""
    if step is None:
        return None, None, None
    wider, saved = verify_s - rounds * step, saved_steps * (step + loop)
    return wider, saved, saved - wider - draft_s


def _rest(metrics: Metrics) -> float:
    """Return the seconds after the first token that were neither drafting nor the target's step."""
    return max(0.0, metrics.decode_s - metrics.draft_s - metrics.verify_s)


def _parts(metrics: Metrics) -> Iterator[tuple[str, float]]:
    by = metrics.drafting.by
    if metrics.queue_s > 0.001:
        yield "waiting for room", metrics.queue_s
    yield "reading the prompt, target", max(0.0, metrics.ttft_s - metrics.queue_s)
    for name, own in by.items():
        if own.reading_s > 0:
            yield f"reading the prompt, {name}", own.reading_s
    for name, own in by.items():
        if own.calls:
            yield f"drafting, {name}", own.seconds - own.reading_s
    if by:
        yield "planning", max(0.0, metrics.draft_s - sum(own.seconds for own in by.values()))
    if metrics.second_tokens:
        yield "second tokens", metrics.draft_s
        yield "the target's steps", metrics.verify_s
    elif metrics.tiers is not None:
        yield "verifying, slim verifier", metrics.tiers.slim_s
        # Rows of a batch also wait for the target where only others ask it.
        yield "verifying, target", max(0.0, metrics.verify_s - metrics.tiers.slim_s)
    else:
        yield "verifying" if metrics.num_drafts else "the target's steps", metrics.verify_s
    yield "sampling and the rest", _rest(metrics)


def _unverified(metrics: Metrics) -> str:
    return (
        f"Lossy ({metrics.lossy}): {metrics.num_accepted_tokens} of {metrics.num_drafts} second tokens were "
        "kept, and nothing verified them: the text is not the unmodified model's."
    )


def _denoised(metrics: Metrics) -> str:
    wrote = f"{metrics.num_steps} steps of the diffusion model wrote {metrics.num_output_tokens} tokens"
    if not metrics.num_drafts:
        return f"Nothing was drafted: {wrote}."
    return (
        f"{metrics.num_accepted_tokens} of {metrics.num_draft_tokens} draft tokens were accepted, and {wrote}"
        "; what it takes alone is not known here: compare with --draft none."
    )


def _verdict(metrics: Metrics, drafters: tuple[Brought, ...], plain: float | None) -> str:
    if metrics.num_output_tokens < 2:
        return "The answer is too short to tell whether speculation paid."
    if not metrics.num_drafts:
        return "Nothing was drafted: this was plain decoding."
    took = metrics.decode_s
    if plain is None or took <= 0:
        return (
            f"Speculation saved {metrics.num_accepted_tokens} of "
            f"{metrics.num_output_tokens - 1} steps; what a plain step costs is not known here, so that its "
            "worth is not either (run specport calibrate)."
        )
    times = f"{took:.2f} s after the first token, where plain decoding would take about {plain:.2f} s"
    ratio = plain / took
    if abs(ratio - 1.0) <= _EVEN:
        return f"Speculation made no difference: {times}."
    if ratio < 1.0:
        worst = min(drafters, key=lambda each: each.net_s or 0.0)
        return f"Speculation did not pay: {times} ({ratio:.2f} times as fast); {worst.drafter} cost the most."
    best = max(drafters, key=lambda each: each.net_s or 0.0)
    return f"Speculation paid: {times} ({ratio:.2f} times as fast); {best.drafter} brought the most."
