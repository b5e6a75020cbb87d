"""Types of the facts in a bundle's manifest that specport reads: of its measurement, training and adaptation.

They stay mappings in `Bundle`, as people and later versions add to them; these types are checked when a
manifest is read. All entries may be missing.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from specport.outside import Format
from specport.outside.numbers import Amount, Count, Positive, Share


class StepTimes(Struct):
    """Milliseconds of steps by number of new tokens."""

    width: Annotated[tuple[Count, ...], Meta(min_length=1)]
    draft: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    target: Annotated[tuple[Positive, ...], Meta(min_length=1)]


class Measured(Struct):
    """The measurement of a draft beside its target."""

    speed_up: Amount = 0.0
    speed_up_range: tuple[Amount, Amount] = (0.0, 0.0)
    acceptance_by_depth: tuple[Share, ...] = ()
    mean_acceptance_length: Amount = 0.0
    cost: Positive = 1.0
    draft_ms: Amount = 0.0
    target_ms: Amount = 0.0
    same_text: Count = 0
    prompts: Count = 0
    max_new_tokens: Count = 0
    ms_by_width: StepTimes | None = None
    date: str = ""
    device: str = ""
    processor: str = ""


class Distilled(Struct):
    """The training of a draft."""

    mlp_channels: Annotated[tuple[Count, ...], Meta(max_length=2)] = ()  # kept of all; () = all
    agreement: Share = 0.0
    agreement_before: Share = 0.0
    trained: bool = True
    tokens_read: Count = 0
    parameters: Count = 0
    seconds: Amount = 0.0
    survival: tuple[Share, ...] = ()
    survival_before: tuple[Share, ...] = ()
    survival_unranked: tuple[Share, ...] = ()
    seed: Count = 0
    loss: str = ""
    text: str | None = None


class Adapted(Struct):
    """The last training on its user's own texts.

    own, old: tokens per step before and after, on own and on old text.
    reach:    share of rounds in which the tokens up to depth 1, 2, ... were accepted, on own text after.
    """

    own: tuple[Amount, Amount]
    old: tuple[Amount, Amount]
    times: Count
    date: str
    tokens_read: Count = 0
    seconds: Amount = 0.0
    reach: tuple[Share, ...] = ()


class Provenance(Struct):
    """Where a draft comes from."""

    adapted: Adapted | None = None
    target_sha256: str | None = None


_REBUILD = "build it again with: specport quantize"
MEASURED = Format(Measured, "a draft bundle's manifest", _REBUILD)
DISTILLED = Format(Distilled, "a draft bundle's manifest", _REBUILD)
PROVENANCE = Format(Provenance, "a draft bundle's manifest", _REBUILD)
