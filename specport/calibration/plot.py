"""Plots of measured cost curves. Needs matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specport.errors import InvalidInput, SpecportError

if TYPE_CHECKING:
    from specport.calibration.calibrate import Report

KINDS = (".svg", ".png", ".pdf")


def check(name: str) -> None:
    """Raise InvalidInput or SpecportError where `draw` could not write this file."""
    path = Path(name)
    if path.suffix not in KINDS:
        raise InvalidInput(f"cannot draw {name}", f"the name must end in {', '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent}")
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise SpecportError("plots need matplotlib", "pip install matplotlib, or leave --plot out") from error


def draw(reports: Sequence[Report], name: str) -> None:
    """Plot one panel per model: milliseconds of a step by its new tokens, one line per context."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(reports), figsize=(5.5 * len(reports), 4), squeeze=False)
    for axis, report in zip(axes[0], reports, strict=True):
        costs = report.measured.costs
        for context, row in zip(costs.contexts, costs.seconds, strict=True):
            axis.plot(costs.widths, [1e3 * s for s in row], marker="o", label=f"context {context}")
        axis.set(title=f"{report.role}: {report.name} ({report.precision})", xlabel="new tokens of a step")
        axis.set_ylabel("ms")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(name)
    pyplot.close(figure)
