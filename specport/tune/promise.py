"""Estimate in seconds what a draft model may bring, before a heat spends minutes on it.

The draft reads text that the target wrote, which tells how often it is right, and does some steps, which
tells what they cost. Both give the tokens per second with the best fixed number of draft tokens. That is for
the order in which drafts are tried. Which one wins is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from specport.calibration import heads, stopping
from specport.core.policies.stop_classifier import TOP_K
from specport.errors import SpecportError
from specport.models.atomic import write_json
from specport.outside import Format
from specport.progress import Progress, part
from specport.tune import hand
from specport.tune.hand import Sibling
from specport.tune.heats import Track, circumstances, folder_for
from specport.tune.plan import UNKNOWN

FILE, FORMAT = "promise.json", 1


class _Stored(Struct):
    speed_up: Annotated[float, Meta(gt=0, le=1000)]


_STORED = Format(_Stored, "an expected speed-up", version=FORMAT)


def find(siblings: Sequence[Sibling], track: Track) -> dict[str, float]:
    """Return what is known of these drafts: alias -> expected speed-up. Loads and converts nothing."""
    found = {}
    for each in siblings:
        if each.head or not hand.is_ready(each.model, track.draft_format, track.loader.backend.weights):
            continue
        if stored := _STORED.find(_path(each, track)):
            found[each.alias] = stored.speed_up
    return found


def measure(siblings: Sequence[Sibling], track: Track, progress: Progress) -> dict[str, float]:
    """Return and store the expected speed-up over plain decoding with each draft, by its alias.

    siblings: no heads. One with another tokenizer is UNKNOWN, one that cannot be loaded is left out.
    Raises SpecportError where the target cannot write.
    """
    found = {}
    track.beside(part(progress, 0.0, 0.4))  # the target writes
    for number, each in enumerate(siblings):
        progress(f"{each.name} reads", 0.4 + 0.6 * number / len(siblings))
        try:
            found[each.alias] = _speed_up(each, track)
            write_json(_path(each, track), {"format": FORMAT, "speed_up": found[each.alias]})
        except SpecportError:  # its heat says why
            continue
    return found


def _speed_up(sibling: Sibling, track: Track) -> float:
    loader, beside = track.loader, track.beside()
    found, draft = loader.draft(
        sibling.model, track.draft_precision, track.files, track.tokenizer, track.target
    )
    if found.mismatch:
        return UNKNOWN
    traces = stopping.trace(draft.model, draft.head_tokens, beside.written, TOP_K)
    if not traces:
        return UNKNOWN
    seconds = heads.step_seconds(draft.model)
    if found.files.bundle and found.files.bundle.parallel:  # its later guesses are taken to be as good
        seconds /= found.files.bundle.parallel.depth
    _, speed = stopping.best_number(traces, beside.costs, seconds)
    return speed * beside.costs.step(1, 0)


def _path(sibling: Sibling, track: Track) -> Path:
    draft = track.loader.files(sibling.model, track.draft_format)
    about = {
        "kind": "promise",
        "weights": track.files.fingerprint,
        "draft": draft.fingerprint,
        **circumstances(track.loader, track.exact),
    }
    return folder_for(about) / FILE
