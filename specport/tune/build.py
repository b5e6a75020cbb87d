"""Build a parallel draft on the way, where the budget allows it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

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
from specport.tune.plan import BUILD_DEPTH

_PLAN = "plan.json"


class _Noted(Struct):
    tokens: Annotated[int, Meta(ge=1, lt=1 << 53)]


_NOTED = Format(_Noted, "a plan of a build")


def source(options: Options, siblings: Sequence[Sibling], loader: Loader) -> str:
    """Return the model to train a draft from: a named sibling, else the target itself; "" = none can be."""
    if not options.build or loader.backend.weights != "ir" or loader.profile.emulated:
        return ""
    named = [each.model for each in siblings if each.why == NAMED and trainable(each.model)]
    if named:
        return named[0]
    return (options.model or "default") if trainable(options.model) else ""


def parallel(options: Options, files: ModelFiles, source: str, tokens: int, progress: Progress) -> Path:
    """Return the folder of a parallel draft for this target, built unless it is there.

    A stopped build goes on, with as much text as it began with. Raises SpecportError.
    """
    from specport.quantize.build import build
    from specport.quantize.request import Request

    digest = hashlib.sha256(f"{files.fingerprint}\0{source}".encode()).hexdigest()[:16]
    folder = cache_root() / "drafts" / "tuned" / digest
    out = folder / f"{files.name}-parallel{BUILD_DEPTH}"
    if (out / bundle.BUNDLE_FILE).is_file():
        return out.resolve()
    noted = folder / _PLAN
    if begun := _NOTED.find(noted):
        tokens = begun.tokens
    else:
        write_json(noted, {"tokens": tokens, "source": source})
    build(
        options.model, out, Request(distil_tokens=tokens, epochs=1.0, parallel=BUILD_DEPTH),
        source=source, device=options.device,
        precision=None if files.precision == "ir" else files.precision,
        draft_precision=options.draft_precision, threads=options.threads,
        trust_remote_code=options.trust_remote_code, progress=progress,
    )  # fmt: skip
    return out.resolve()
