"""A table and a plot of one or several runs. The plot needs matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles

from specport.quantize.rl.record import Step

_WINDOW = 5  # steps of a running mean
_PANELS = ("reward", "acceptance_rate", "mean_acceptance_length", "speed_up")
_TITLES = ("reward", "acceptance rate", "mean acceptance length", "rollout time, plain / speculative")


def table(runs: Mapping[str, Sequence[Step]], parts: int = 3) -> str:
    """Return a Markdown table with a row for each part of each run, in order. runs: by name, not empty."""
    lines = [
        "| run | updates | reward | entropy | acceptance | length | tokens/s | speed-up | log-prob gap |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, steps in runs.items():
        size = max(1, -(-len(steps) // parts))  # a run may have no step yet
        lines += [_row(name, steps[i : i + size]) for i in range(0, len(steps), size)]
        if len(steps) > size:
            lines.append(_row(f"{name}, all", steps))
    return "\n".join(lines)


def _row(name: str, steps: Sequence[Step]) -> str:
    drafted, drafts = (sum(getattr(s, what) for s in steps) for what in ("drafted", "drafts"))
    accepted = sum(s.accepted for s in steps)
    reward = sum(s.reward for s in steps) / len(steps)
    tokens = sum(s.tokens for s in steps)
    entropy = sum(s.entropy * s.tokens for s in steps) / max(1, tokens)
    cells = [
        name,
        f"{steps[0].step + 1}-{steps[-1].step + 1}",
        f"{reward:.3f}",
        f"{entropy:.2f}",
        f"{accepted / max(1, drafted):.3f}",
        f"{1 + accepted / max(1, drafts):.2f}",
        f"{median(s.tokens_per_second for s in steps):.0f}",
        _spread([s.speed_up for s in steps if s.speed_up is not None]),
        f"{sum(s.gap * s.tokens for s in steps) / max(1, tokens):.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float]) -> str:
    """Return the median with the quartiles; a dash for no values."""
    if not values:
        return "-"
    low, _, high = quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"{median(values):.2f} ({low:.2f}-{high:.2f})"


def draw(runs: Mapping[str, Sequence[Step]], path: Path) -> None:
    """Write a plot with a panel for each figure: the steps as points, their running means as lines."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "specport"  # the same file for the same runs
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(_PANELS), figsize=(4 * len(_PANELS), 3.4))
    for axis, what, title in zip(axes, _PANELS, _TITLES, strict=True):
        for i, (name, steps) in enumerate(runs.items()):
            points = [(s.step + 1, getattr(s, what)) for s in steps if getattr(s, what) is not None]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            axis.plot(x, y, ".", markersize=3, alpha=0.4, color=f"C{i}")
            means = [sum(y[max(0, j - _WINDOW + 1) : j + 1]) / min(j + 1, _WINDOW) for j in range(len(y))]
            axis.plot(x, means, color=f"C{i}", label=name)
        axis.set(title=title, xlabel="update")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
