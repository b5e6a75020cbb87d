"""The result of an adaptation: for the user, for the log, and for the manifest of the new draft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specport.quantize.adapt import swapping
from specport.quantize.adapt.judging import Judgement
from specport.quantize.provenance import now

from specport.models.bundle import Bundle

KEPT, REFUSED, STOPPED = "kept", "refused", "stopped"
ADAPTED = "adapted"  # the entry of `Bundle.provenance`


@dataclass(frozen=True)
class Adapted:
    """The result of an adaptation.

    state: KEPT, REFUSED (the old draft stays), or STOPPED (the time was over; the next one goes on).
    own_tokens, old_tokens: tokens of answers that were learned from.
    judgement: of the two drafts; None where training itself did not make the draft better.
    """

    state: str
    draft: Path
    own_tokens: int = 0
    old_tokens: int = 0
    judgement: Judgement | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the result, ready for JSON."""
        return {
            "state": self.state,
            "draft": str(self.draft),
            "previous": str(swapping.previous_of(self.draft)) if self.state == KEPT else None,
            "own_tokens": self.own_tokens,
            "old_tokens": self.old_tokens,
            "judgement": self.judgement.as_dict() if self.judgement else None,
            "notes": [*self.notes],
        }

    def finding(self) -> dict[str, Any]:
        """Return what `specport adapt status` tells of the last adaptation."""
        found = {"state": self.state, "draft": str(self.draft), "date": now()}
        return found | (_figures(self.judgement) if self.judgement else {})


def with_finding(made: Bundle, facts: Mapping[str, Any], result: Adapted, judgement: Judgement) -> Bundle:
    """Return the manifest of the new draft, which says what it learned from and what that gave."""
    earlier = made.provenance.get(ADAPTED)
    times = int(earlier.get("times", 0)) if isinstance(earlier, Mapping) else 0
    finding = {
        "times": times + 1,
        "date": now(),
        "own_tokens": result.own_tokens,
        "old_tokens": result.old_tokens,
        "tokens_read": facts["tokens_read"],
        "seconds": facts["seconds"],
        "reach": [*judgement.own_after.by_depth],
        **_figures(judgement),
    }
    return replace(made, provenance={**made.provenance, ADAPTED: finding})


def _figures(judgement: Judgement) -> dict[str, list[float]]:
    """Return the tokens per step before and after, on own and on old text."""
    return {
        "own": [judgement.own_before.tokens_per_step, judgement.own_after.tokens_per_step],
        "old": [judgement.old_before.tokens_per_step, judgement.old_after.tokens_per_step],
    }
