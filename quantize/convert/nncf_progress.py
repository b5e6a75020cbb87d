"""Pass NNCF's progress bars on: AWQ, scale estimation and GPTQ take minutes to hours on large models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from specport.progress import Progress, part


@contextmanager
def reported(progress: Progress) -> Iterator[None]:
    """Report every loop that NNCF shows a bar for, while the context lasts.

    How many loops there will be is not known: each one takes half of what is left of the progress. A version
    of NNCF without this class reports nothing.
    """
    try:
        from nncf.common.logging.track_progress import track
    except ImportError:
        yield
        return
    before = track.__iter__
    loops = 0

    def iterate(bar: Any) -> Iterator[Any]:
        nonlocal loops
        own, loops = part(progress, 1 - 0.5**loops, 1 - 0.5 ** (loops + 1)), loops + 1
        label = str(bar.description).rstrip(". ").lower() or "compressing weights"
        weights, items = bar.weights, bar.sequence
        total = float(bar.total or (len(items) if hasattr(items, "__len__") else 0) or 1)
        done = 0.0
        own(label, 0.0)
        for number, item in enumerate(before(bar)):
            yield item
            done += weights[number] if weights is not None else 1.0
            own(label, min(done / total, 1.0))

    track.__iter__ = iterate
    try:
        yield
    finally:
        track.__iter__ = before
