"""A sweep over drafts of one target with different numbers of layers, with a table and a plot of their speed.

The examples beside this file share it. The target's text is written once for all drafts. Run the same command
again to resume a sweep.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from specport.quantize.build import build
from specport.quantize.request import Request

from specport.models import bundle
from specport.models.bundle import Bundle
from specport.progress import progress_bar


def arguments(
    description: str, layers: Sequence[int], distil: int, mlp: float = 1.0
) -> argparse.ArgumentParser:
    """Return a parser with the options of a sweep; the arguments are their defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("drafts"), help="folder of the drafts")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=list(layers), help="numbers of layers to keep"
    )
    parser.add_argument("--distil", type=int, default=distil, help="tokens of text that the target writes")
    parser.add_argument(
        "--epochs", type=float, default=0.0, help="times that each text is read in training; 0 = fit only"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--mlp", type=float, default=mlp, help="share of the feed-forward channels to keep")
    parser.add_argument("--device", default="auto")
    return parser


def sweep(
    target: str | None,
    source: str | None,
    layers: Sequence[int],
    request: Request,
    out: Path,
    device: str,
    precision: str | None = None,
) -> list[Bundle]:
    """Build a draft with each number of layers in `out / layers-N`, unless it exists; return all of them."""
    drafts = []
    for count in layers:
        folder = out / f"layers-{count}"
        if not folder.exists():
            with progress_bar() as progress:
                build(
                    target, folder, replace(request, layers=count),
                    source=source, device=device, precision=precision, progress=progress,
                )  # fmt: skip
        drafts.append(bundle.read(folder))
    return drafts


def table(drafts: Sequence[Bundle]) -> str:
    """Return the measurements of each draft as a Markdown table."""
    lines = [
        "| layers | draft step | cost | agreement, distilled | mean acceptance length | decode | same text |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for draft in drafts:
        m, d = draft.measured, draft.distilled
        agreement = f"{d['agreement']:.1%} from {d['agreement_before']:.1%}" if d else "not distilled"
        low, high = m["speed_up_range"]
        lines.append(
            f"| {len(draft.layers)} | {m['draft_ms']:.1f} ms | {m['cost']:.2f} | {agreement} "
            f"| {m['mean_acceptance_length']:.2f} | {m['speed_up']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {m['same_text']}/{m['prompts']} |"
        )
    return "\n".join(lines)


def plot(drafts: Sequence[Bundle], path: Path, title: str) -> None:
    """Plot the speed-up over plain decoding by layers kept; bars reach from the worst to the best prompt."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drafts = sorted(drafts, key=lambda draft: len(draft.layers))
    kept = [len(draft.layers) for draft in drafts]
    middle = [draft.measured["speed_up"] for draft in drafts]
    ranges = [draft.measured["speed_up_range"] for draft in drafts]
    below = [m - low for m, (low, _) in zip(middle, ranges, strict=True)]
    above = [high - m for m, (_, high) in zip(middle, ranges, strict=True)]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.axhline(1.0, color="0.6", linewidth=1, linestyle="--", label="plain decoding")
    axes.errorbar(kept, middle, yerr=[below, above], marker="o", capsize=3, label="draft, planned")
    axes.set(title=title, xlabel="decoder layers kept", ylabel="decode speed-up")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)


def report(drafts: Sequence[Bundle], out: Path, title: str) -> None:
    """Write the plot into `out` and print the table."""
    plot(drafts, out / "speed-up.svg", title)
    print(table(drafts))
    print(f"\nplot: {out / 'speed-up.svg'}")
