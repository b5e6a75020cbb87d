"""Train a draft on the way, where the budget allows it: a head, or a parallel draft."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from specport.models import bundle
from specport.models.atomic import write_json
from specport.models.cache import cache_root
from specport.models.source import ModelFiles
from specport.outside import Format
from specport.progress import Progress
from specport.runtime.loading import Loader
from specport.tune.hand import NAMED, Sibling, trainable
from specport.tune.options import Options
from specport.tune.trainings import DEPTH, HEAD, PARALLEL, Training

_PLAN = "plan.json"


class _Noted(Struct):
    tokens: Annotated[int, Meta(ge=1, lt=1 << 53)]


_NOTED = Format(_Noted, "a plan of a build")


def possible(options: Options, loader: Loader) -> bool:
    """Return whether drafts can be trained for this device, and are wanted."""
    return options.build and loader.backend.weights == "ir" and not loader.profile.emulated


def head(options: Options, siblings: Sequence[Sibling], loader: Loader) -> bool:
    """Return whether to train a draft head: where the target has none."""
    return possible(options, loader) and not any(each.head for each in siblings)


def source(options: Options, siblings: Sequence[Sibling], loader: Loader) -> str:
    """Return the model to train a draft from: a named sibling, else the target itself; "" = none can be."""
    if not possible(options, loader):
        return ""
    named = [each.model for each in siblings if each.why == NAMED and trainable(each.model)]
    if named:
        return named[0]
    return (options.model or "default") if trainable(options.model) else ""


def train(
    training: Training, options: Options, files: ModelFiles, source: str, tokens: int, progress: Progress
) -> Path:
    """Return the folder of a draft that was trained for this target, built unless it is there.

    source: model that a parallel draft is made from. tokens: of text. A stopped build goes on, with as much
    text as it began with. Raises SpecportError.
    """
    made_from = source if training is PARALLEL else training.name
    digest = hashlib.sha256(f"{files.fingerprint}\0{made_from}".encode()).hexdigest()[:16]
    folder = cache_root() / "drafts" / "tuned" / digest
    out = folder / f"{files.name}-{training.name}"
    if (out / bundle.BUNDLE_FILE).is_file():
        return out.resolve()
    noted = folder / _PLAN
    if begun := _NOTED.find(noted):
        tokens = begun.tokens
    else:
        write_json(noted, {"tokens": tokens, "source": made_from})
    where: dict[str, Any] = {
        "device": options.device,
        "precision": None if files.precision == "ir" else files.precision,
        "threads": options.threads,
        "trust_remote_code": options.trust_remote_code,
        "progress": progress,
    }
    if training is HEAD:
        from specport.quantize.heads import recurrent

        recurrent.build(options.model, out, recurrent.Request(distil_tokens=tokens), **where)
    else:
        from specport.quantize.build import build
        from specport.quantize.request import Request

        request = Request(distil_tokens=tokens, epochs=1.0, parallel=DEPTH)
        build(options.model, out, request, source=source, draft_precision=options.draft_precision, **where)
    return out.resolve()
