"""Print the account of an answer: `specport run --explain`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specport.core.ports import TierCounts
    from specport.explain import Explanation


def lines(account: Explanation) -> Iterator[str]:
    """Yield the lines of the account: the parts of the time, the drafters, and the verdict."""
    width = max(len(part.name) for part in account.parts)
    yield f"{'where the time went':{max(width, 19)}}{'ms':>10}{'share':>8}"
    for part in account.parts:
        yield f"{part.name:{max(width, 19)}}{1e3 * part.seconds:10.1f}{part.share:8.1%}"
    if account.drafters:
        name = max(len("drafter"), *(len(each.drafter) for each in account.drafters))
        yield (
            f"{'drafter':{name}}{'rounds':>8}{'drafted':>9}{'accepted':>10}{'spent ms':>10}{'saved ms':>10}"
            f"{'net ms':>9}"
        )
        for each in account.drafters:
            spent = None if each.wider_s is None else each.draft_s + each.wider_s
            yield (
                f"{each.drafter:{name}}{each.rounds:8}{each.drafted:9}{each.accepted:10}{_ms(spent):>10}"
                f"{_ms(each.saved_s):>10}{_ms(each.net_s):>9}"
            )
        but = ""
        if account.tiers is not None and account.tiers.open_rounds:
            but = f", but for one in each of the {account.tiers.open_rounds} drafts that were accepted whole"
        yield (
            f"An accepted token saves a step{but}. "
            "Spent: drafting, and what wider steps take beyond plain ones."
        )
    if account.tiers is not None:
        yield _tiers(account.tiers)
    yield account.verdict


def _tiers(tiers: TierCounts) -> str:
    """Return the line about tiered verification."""
    tokens = tiers.accepted + tiers.regenerated + tiers.escalated
    share = tiers.full_calls / tokens if tokens else 0.0
    return (
        f"Lossy: of {tokens} tokens the slim verifier accepted {tiers.accepted} and chose "
        f"{tiers.regenerated}, the target decided {tiers.escalated}; {tiers.slim_steps} slim steps, "
        f"{tiers.full_calls} calls of the target ({share:.2f} a token)."
    )


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{1e3 * seconds:.1f}"
