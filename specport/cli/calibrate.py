"""`specport calibrate`: measure a model's step times on this machine for the planner of `specport run`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from specport.calibration.calibrate import Report
    from specport.drafters.tree.graft_thresholds import Choice

EXAMPLES = """\
examples:
  specport calibrate                                  the default model on this machine
  specport calibrate --device xeon --model DIR --draft 'ngram|DRAFT_DIR' --plot costs.svg
  specport calibrate --model DIR --draft early-exit
  specport calibrate --model DIR --draft 'graft(DRAFT_DIR)'

Takes about one minute per model, longer for a graft. Keep the machine idle meanwhile. The head of a draft is
cut to its most frequent tokens where that is faster. --draft early-exit finds the layer after which the model
drafts best for itself. graft(MODEL) finds the thresholds at which its tree stops. `specport run` with the
same models, device, mode and threads uses the results.
"""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "calibrate", help="measure step times here, for planning the number of draft tokens", epilog=EXAMPLES,
        description="Measure the step time of target and draft by number of new tokens and context.",
    )  # fmt: skip
    options.add_target_options(parser)
    options.add_draft_options(parser.add_argument_group("drafting"))
    output = parser.add_argument_group("output")
    output.add_argument("--plot", metavar="FILE", help="plot the step times to a .svg, .png or .pdf file")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    output.add_argument("--quiet", action="store_true", help="no progress bar")


CALIBRATE_OPTIONS = (
    "draft",
    "device",
    "precision",
    "exact",
    "draft_precision",
    "threads",
    "trust_remote_code",
)


def run(args: argparse.Namespace) -> int:
    if args.plot is not None:
        from specport.calibration.plot import check

        check(args.plot)  # fail now, not after a minute of measuring
    from specport.calibration.calibrate import calibrate

    given = options.given(args, CALIBRATE_OPTIONS)
    if given.get("draft") == "auto":
        raise InvalidInput("--draft auto names no draft model to measure", "name one, or omit --draft")
    with terminal.progress(args.quiet) as progress:
        reports = calibrate(args.model, **given, progress=progress)
    if args.json:
        terminal.write(json.dumps([_as_dict(report) for report in reports], indent=1) + "\n")
    else:
        for report in reports:
            _table(report)
    if args.plot is not None:
        from specport.calibration.plot import draw

        draw(reports, args.plot)
        terminal.say(f"drawn: {args.plot}")
    return 0


def _table(report: Report) -> None:
    """Print the step times of one model, and what was chosen by them."""
    costs = report.measured.costs
    say = terminal.write
    rounds = f"median of {report.measured.rounds} rounds"
    after = f", exit after layer {report.exit_layer}" if report.exit_layer else ""
    say(f"{report.role} {report.name} ({report.precision}{after}): ms per step, {rounds}\n")
    say(f"{'new tokens':>14}" + "".join(f"{width:>7}" for width in costs.widths) + "\n")
    for context, row in zip(costs.contexts, costs.seconds, strict=True):
        say(f"{f'context {context}':>14}" + "".join(f"{1e3 * s:7.1f}" for s in row) + "\n")
    relative = (s / costs.seconds[0][0] for s in costs.seconds[0])
    say(f"{'over one token':>14}" + "".join(f"{r:7.2f}" for r in relative) + "\n")
    say(f"a change of step width adds {1e3 * costs.change * costs.seconds[0][0]:.1f} ms\n")
    if report.loop_s is not None:
        say(f"the loop adds {1e3 * report.loop_s:.2f} ms to a plain step\n")
    if report.heads:
        _heads(report)
    if report.exits:
        _exits(report)
    if report.grafts:
        _grafts(report.grafts)
    outliers = report.measured.outliers
    if outliers:
        worst = max(outliers, key=lambda outlier: outlier.seconds / outlier.median)
        say(
            f"{len(outliers)} timings over 1.5 times their median were excluded; the largest: "
            f"{1e3 * worst.seconds:.0f} ms for {worst.width} tokens at context {worst.context}\n"
        )
    if report.measured.busy:
        say(
            f"the machine was busy: other programs used {report.measured.other_cores:.1f} cores, so these "
            "times are too long; calibrate again when it is idle\n"
        )
    if report.path is not None:
        say(f"saved to {report.path}\n")
    say("\n")


def _heads(report: Report) -> None:
    """Print one line per size of the draft's head."""
    terminal.write(f"{'head':>14}{'ms':>7}{'agreement':>11}{'tokens/s':>10}\n")
    for head in report.heads:
        size = str(head.size) + (" whole" if head.tokens is None else "")
        used = "  used" if head is report.head else ""
        figures = f"{1e3 * head.seconds:7.1f}{head.agreement:11.1%}{head.tokens_per_second:10.1f}"
        terminal.write(f"{size:>14}{figures}{used}\n")


def _exits(report: Report) -> None:
    """Print one line per exit layer."""
    terminal.write(f"{'exit':>14}{'ms':>7}{'agreement':>11}{'tokens/s':>10}\n")
    for tried in report.exits:
        used = "  used" if tried.layer == report.exit_layer else ""
        figures = f"{1e3 * tried.seconds:7.1f}{tried.agreement:11.1%}{tried.tokens_per_second:10.1f}"
        terminal.write(f"{tried.layer:>14}{figures}{used}\n")


def _grafts(choices: Sequence[Choice]) -> None:
    """Print one line per checkpoint. tokens/s counts only the rounds that reached it."""
    say = terminal.write
    say(f"{'graft: level':>14}{'stop below':>12}{'keep':>7}{'rounds':>8}{'stop':>7}")
    say(f"{'tokens/s':>10}{'never':>8}\n")
    for choice in choices:
        level, threshold, share = astuple(choice.checkpoint)
        below = "never" if threshold <= 0 else "always" if threshold > 1 else f"{threshold:.2f}"
        say(f"{level:>14}{below:>12}{share:7.0%}{choice.num_rounds:>8}")
        if choice.learnt:
            say(
                f"{choice.stopped:7.0%}{choice.tokens_per_second:10.1f}{choice.never_tokens_per_second:8.1f}\n"
            )
        else:
            say("  too few rounds: unchanged\n")


def _as_dict(report: Report) -> dict[str, object]:
    measured = report.measured
    return {
        "role": report.role,
        "model": report.name,
        "precision": report.precision,
        "widths": measured.costs.widths,
        "contexts": measured.costs.contexts,
        "seconds": measured.costs.seconds,
        "spread": measured.spread,
        "change": measured.costs.change,
        "rounds": measured.rounds,
        "outliers": [asdict(outlier) for outlier in measured.outliers],
        "loop_s": report.loop_s,
        "heads": [
            {
                "size": head.size,
                "seconds": head.seconds,
                "agreement": head.agreement,
                "tokens_per_second": head.tokens_per_second,
                "used": head is report.head,
            }
            for head in report.heads
        ],
        "exit_layer": report.exit_layer,
        "exits": [asdict(tried) for tried in report.exits],
        "classifier": report.trained
        and {
            "threshold": report.trained.classifier.threshold,
            "tokens_per_second": report.trained.tokens_per_second,
            "fixed_tokens_per_second": report.trained.fixed_tokens_per_second,
        },
        "graft": [
            {
                **asdict(choice.checkpoint),
                "rounds": choice.num_rounds,
                "learnt": choice.learnt,
                "stopped": choice.stopped,
                "tokens_per_second": choice.tokens_per_second,
                "never_tokens_per_second": choice.never_tokens_per_second,
            }
            for choice in report.grafts
        ],
        "path": None if report.path is None else str(report.path),
    }
