"""Gather what a plan rests on, with or without a loaded target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specport.drafters.registry import MTP
from specport.drafters.spec import parse
from specport.errors import ModelError
from specport.outside.places import expanded
from specport.progress import Progress
from specport.runtime.drafts.mtp import module_of
from specport.runtime.loading import Loader
from specport.runtime.stored import measurements, tuned
from specport.tune import build, hand, promise
from specport.tune.hand import Sibling
from specport.tune.heats import Track
from specport.tune.options import Options
from specport.tune.plan import Facts


def open_loader(options: Options, progress: Progress) -> Loader:
    """Return the loader of these options. Raises SpecportError."""
    return Loader.on(options.device, options.threads, None, options.trust_remote_code, progress)


def base_precision(options: Options, loader: Loader) -> str:
    """Return the weight format to begin with: the user's, an earlier tuning's, or the device's own."""
    earlier = tuned.find(options.model, loader.profile.name).precision
    return options.precision or earlier or loader.profile.precision


def open_track(options: Options, loader: Loader, precision: str) -> Track:
    """Load the target in this weight format, with the prompts to measure on. Raises SpecportError."""
    return Track.open(
        loader, options.model, precision, options.chosen_prompts, options.max_new_tokens, options.exact,
        options.draft_precision,
    )  # fmt: skip


def formats(options: Options, loader: Loader) -> tuple[str, ...]:
    """Return the weight formats to compare; () where the user has chosen one."""
    if options.precision is not None:
        return ()
    return hand.formats(options.model, loader.profile, loader.backend.weights)


def facts(options: Options, loader: Loader, track: Track) -> Facts:
    """Return what a plan rests on, for a loaded target."""
    names = formats(options, loader)
    siblings = hand.siblings(options.drafts, track.files, track.tokenizer, loader)
    lengths = [len(ids) for ids in track.encoded.values()]
    return Facts(
        costs=track.costs,
        ready=True,
        formats=names,
        unconverted=sum(
            not hand.is_ready(options.model, name, loader.backend.weights) for name in (*names, "fp16")
        ),
        half_gb=hand.half_gb(track.files.folder, track.files.precision),
        siblings=siblings,
        early=hand.exits_early(options.model),
        mtp=hand.predicts_more(track.files.origin),
        tree=track.target.model.capabilities.tree,
        source=build.source(options, siblings, loader),
        head=build.head(options, siblings, loader),
        prompt_tokens=max(1, sum(lengths) // len(lengths)),
        max_new_tokens=options.max_new_tokens,
        num_prompts=len(track.prompts),
        calibrated=_calibrated(siblings, track),
        promises=promise.find(siblings, track),
    )


def _calibrated(siblings: Sequence[Sibling], track: Track) -> frozenset[str]:
    """Return the aliases of draft models that were calibrated for this target, and MTP where that was."""
    found, loader, precision = set(), track.loader, track.draft_format
    for each in siblings:
        if each.head:
            key = measurements.of_head(track.target.key, loader.files(each.model, precision).fingerprint)
            if measurements.find(key) is not None:
                found.add(each.alias)
        elif hand.is_ready(each.model, precision, loader.backend.weights):
            files = loader.files(each.model, precision)
            if measurements.find_pair(track.target.key, files.fingerprint) != measurements.Pair():
                found.add(each.alias)
    if hand.predicts_more(track.files.origin):
        try:
            module = module_of(parse(MTP), track.files, loader)
        except ModelError:  # its heat says why
            module = None
        if module and measurements.find(measurements.of_head(track.target.key, module.fingerprint)):
            found.add(MTP)
    return frozenset(found)


def facts_unseen(options: Options, loader: Loader) -> Facts:
    """Return what is known of a model that was not converted yet."""
    named = tuple(hand.sibling(tuned.lasting(each), Path(each).name, hand.NAMED) for each in options.drafts)
    return Facts(
        costs=None,
        ready=False,
        formats=formats(options, loader),
        unconverted=0,
        half_gb=0.0,
        siblings=named,
        early=hand.exits_early(options.model),
        mtp=hand.predicts_more(None if options.model is None else expanded(options.model)),
        tree=False,
        source=build.source(options, named, loader),
        head=build.head(options, named, loader),
        prompt_tokens=0,
        max_new_tokens=options.max_new_tokens,
        num_prompts=len(options.chosen_prompts),
    )
