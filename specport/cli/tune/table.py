"""Print the result of a tuning: what was tried, what it gave, and why the winner won."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specport.cli import terminal
from specport.tune import weights
from specport.tune.budget import written

if TYPE_CHECKING:
    from specport.tune.choose import Tried
    from specport.tune.report import Report


def show(report: Report) -> None:
    """Print the tables and the choice."""
    say = terminal.write
    say(f"{report.model} ({report.precision}) on {report.device} ({report.processor})\n")
    exact = "exact" if report.exact else "fast"
    say(
        f"{report.prompts} prompts, {report.max_new_tokens} tokens at most, greedy, {exact} mode; "
        f"took {written(report.seconds)}\n"
    )
    if report.weights:
        _weights(report)
    _drafters(report)
    if report.promises:
        ranked = sorted(report.promises.items(), key=lambda each: -each[1])
        expected = ", ".join(f"{name} {speed_up:.2f}" for name, speed_up in ranked)
        say(f"expected of draft models alone, before they were tried: {expected}\n")
    for what, why in report.untried.items():
        say(f"not tried: {what}: {why}\n")
    if report.busy:
        say(f"other programs used {report.other_cores:.1f} cores meanwhile: tune again when it is idle\n")
    verdict = report.verdict
    say(f"\nchosen: --draft {verdict.draft}\nwhy: {verdict.reason}\n")
    terminal.say(f"kept in {report.path}; specport run uses it, specport tune --forget drops it")


def _weights(report: Report) -> None:
    say = terminal.write
    own = report.weights[0].precision
    width = max(len("weights"), *(len(row.precision) for row in report.weights))
    say(f"\n{'weights':{width}}{'MB':>9}{'steps':>8}{'TPOT ms':>9}{'TTFT ms':>9}{'KL':>9}{'same top':>10}\n")
    for row in sorted(report.weights, key=lambda row: row.cost):
        say(
            f"{row.precision:{width}}{row.size_mb:9.1f}{row.cost:8.2f}{row.tpot_ms:9.2f}{row.ttft_ms:9.0f}"
            f"{row.kl:9.4f}{row.same_top:10.1%}  {weights.remark(row, report.precision, own)}\n"
        )
    say(f"steps: cost of steps of 1 to 8 tokens. Quality is kept with {weights.BOUNDS}.\n")


def _drafters(report: Report) -> None:
    say = terminal.write
    tried: Sequence[Tried] = report.verdict.tried
    width = max([len("plain decoding"), *(len(each.name) for each in tried)])
    say(
        f"\n{'drafter':{width}}{'end to end':>12}{'decode':>8}{'TTFT ms':>9}{'TPOT ms':>9}{'tokens/step':>13}"
    )
    say(f"{'accepted':>10}{'same text':>11}\n")
    for each in tried:
        figures = each.figures
        if figures is None:
            continue
        decode = "" if figures.decode is None else f"{figures.decode:.2f}"
        length = figures.mean_acceptance_length
        first = f"{figures.acceptance_per_position[0]:.0%}" if figures.acceptance_per_position else ""
        say(
            f"{each.name:{width}}{figures.end_to_end:12.2f}{decode:>8}{figures.ttft_ms:9.0f}"
            f"{figures.tpot_ms:9.2f}{'' if length is None else f'{length:.2f}':>13}{first:>10}"
            f"{f'{figures.same}/{figures.prompts}':>11}  {each.remark}\n"
        )
    plain = report.plain
    if plain:
        say(
            f"{'plain decoding':{width}}{1.0:12.2f}{1.0:>8.2f}{plain['ttft_ms']:9.0f}{plain['tpot_ms']:9.2f}"
            f"{1.0:13.2f}{'':>10}{'':>11}  drift {plain['drift']:+.1%}\n"
        )
    say("Speed-ups are over plain decoding on the same prompts, in turns. accepted: of first draft tokens.\n")
