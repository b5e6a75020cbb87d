"""Pair models on the command line: which options do not apply to them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from specport.cli import options
from specport.errors import InvalidInput
from specport.progress import Progress

if TYPE_CHECKING:
    from specport.pipeline import Pipeline

_OPTIONS = (
    "device", "precision", "exact", "threads", "max_context", "cache_memory", "trust_remote_code",
    "pair_threshold",
)  # fmt: skip
_WITHOUT = {"draft": "none"}  # values that say what holds anyway


def load(args: argparse.Namespace, progress: Progress) -> Pipeline:
    """Load the pair model that `args.model` names. Raises InvalidInput for options that do not apply."""
    if options.given(args, options.DIFFUSION_OPTIONS):
        raise InvalidInput(
            "options of diffusion models do not apply to a pair model (PIPO)", "leave them out"
        )
    for name in options.LOAD_OPTIONS:
        value = getattr(args, name, None)
        if name in _OPTIONS or value is None or value == _WITHOUT.get(name):
            continue
        shown = "--no-prefix-cache" if name == "prefix_cache" and value is False else f"--{name}"
        raise InvalidInput(
            f"{shown.replace('_', '-')} does not apply to a pair model (PIPO): it writes pairs, and nothing "
            "verifies them",
            "leave it out; --pair-threshold says when a second token is kept",
        )
    from specport.pipo.load import load as load_pairs

    return load_pairs(args.model, **options.given(args, _OPTIONS), progress=progress)
