"""Report the progress of slow work: a callback for library use, a bar on stderr for the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from specport.outside.shown import visible

Progress = Callable[[str, float], None]  # (name of the stage, share done of the whole: 0 to 1)


def silent(what: str, share: float) -> None:
    """Show nothing."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a progress callback that draws a bar on stderr, starting with its first call."""
    from tqdm import tqdm

    bar: tqdm[None] | None = None

    def show(what: str, share: float) -> None:
        nonlocal bar
        if bar is None:
            form = "{desc:<40} {percentage:3.0f}% |{bar:30}| {elapsed}"
            bar = tqdm(total=100, bar_format=form, file=sys.stderr, leave=False)
        bar.n = round(100 * min(max(share, 0.0), 1.0))
        bar.set_description_str(visible(what))

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def part(progress: Progress, start: float, end: float) -> Progress:
    """Return a callback whose range 0 to 1 maps to `start` to `end` of `progress`."""
    return lambda what, share: progress(what, start + (end - start) * min(max(share, 0.0), 1.0))
