"""Builds drafts of one target with different numbers of layers, and draws what they are worth.

What the examples beside this file share. Text that the target writes is written once for all of them; a sweep
that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from specport.quantize.build import Request, build

from specport.models import bundle
from specport.models.bundle import Bundle
from specport.progress import progress_bar


def arguments(
    description: str, layers: Sequence[int], distil: int, mlp: float = 1.0
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("drafts"), help="folder of the drafts")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=list(layers), help="numbers of layers to keep"
    )
    parser.add_argument("--distil", type=int, default=distil, help="tokens that the target writes")
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
    """A draft with each number of layers in `out / layers-N`; those that are there are not built again."""
    found = []
    for count in layers:
        folder = out / f"layers-{count}"
        if not folder.exists():
            with progress_bar() as progress:
                asked = replace(request, layers=count)
                build(
                    target,
                    folder,
                    asked,
                    source=source,
                    device=device,
                    precision=precision,
                    progress=progress,
                )
        found.append(bundle.read(folder))
    return found


def table(drafts: Sequence[Bundle]) -> str:
    """What was measured of each draft, in Markdown."""
    lines = [
        "| layers | draft step | cost | agreement, healed | mean acceptance length | decode | same text |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for draft in drafts:
        m, d = draft.measured, draft.distilled
        healed = f"{d['agreement']:.1%} from {d['agreement_before']:.1%}" if d else "not healed"
        low, high = m["speed_up_range"]
        lines.append(
            f"| {len(draft.layers)} | {m['draft_ms']:.1f} ms | {m['cost']:.2f} | {healed} "
            f"| {m['mean_acceptance_length']:.2f} | {m['speed_up']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {m['same_text']}/{m['prompts']} |"
        )
    return "\n".join(lines)


def plot(drafts: Sequence[Bundle], path: Path, title: str) -> None:
    """Speed-up over plain decoding against layers kept; bars reach from the worst to the best prompt."""
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
    plot(drafts, out / "speed-up.svg", title)
    print(table(drafts))
    print(f"\nplot: {out / 'speed-up.svg'}")
