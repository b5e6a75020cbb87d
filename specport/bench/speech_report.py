"""The report of `specport bench --speech`: a table for people, and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.models.atomic import write_atomically, write_json
from specport.outside.shown import in_markdown


@dataclass(frozen=True)
class SpeechReport:
    """Hold the results. rows: one a method; speakers: one a clip with known speakers."""

    rows: list[dict[str, Any]]
    speakers: list[dict[str, Any]]
    about: Mapping[str, Any]
    folder: Path


_COLUMNS = {
    "method": "method", "wer": "WER %", "same_text": "same text", "same_ids": "same ids",
    "seconds": "seconds", "real_time_factor": "real-time factor", "speedup": "speed-up",
    "encoder_seconds": "encoder s",
    "decoder_seconds": "decoder s", "tokens_per_step": "tokens a step", "acceptance": "accepted %",
}  # fmt: skip
_PERCENT = ("wer", "acceptance")


def table(report: SpeechReport) -> list[list[str]]:
    """Return the results as rows of cells, with a head."""
    found = [[*_COLUMNS.values()]]
    for row in report.rows:
        cells = []
        for name in _COLUMNS:
            value = row[name]
            if name in ("same_text", "same_ids") and value is not None:
                value = f"{value}/{row['clips']}"
            elif isinstance(value, float):
                value = f"{100 * value:.2f}" if name in _PERCENT else f"{value:.3g}"
            cells.append("" if value is None else str(value))
        found.append(cells)
    return found


def _percents(rates: Mapping[str, float | None]) -> str:
    return " | ".join("" if rate is None else f"{100 * rate:.2f}" for rate in rates.values())


def write(report: SpeechReport, clips: Sequence[Mapping[str, Any]]) -> None:
    """Write report.md and report.json. clips: what each method made of them."""
    head, *body = table(report)
    about = {**report.about, "packages": ", ".join(map(" ".join, report.about["packages"].items()))}
    lines = ["# Speech", "", *(f"- {name}: {in_markdown(str(v))}" for name, v in about.items()), ""]
    lines += [
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {' | '.join(map(in_markdown, row))} |" for row in body),
        "",
    ]
    languages = report.rows[0]["wer_by_language"]
    if len(languages) > 1:
        lines += [
            f"| WER % | {' | '.join(map(in_markdown, languages))} |",
            f"|{' --- |' * (1 + len(languages))}",
            *(
                f"| {in_markdown(row['method'])} | {_percents(row['wer_by_language'])} |"
                for row in report.rows
            ),
            "",
        ]
    for each in report.speakers:
        shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in each["right_speaker"].items())
        lines.append(
            f"- {in_markdown(each['id'])}: diarization error {100 * each['der']:.1f} % (number of speakers "
            f"given), {100 * each['der_estimated']:.1f} % ({each['estimated']} of {each['speakers']} "
            f"estimated); words with the right speaker, by merge: {shares}"
        )
    write_atomically(report.folder / "report.md", "\n".join(lines) + "\n")
    data = {
        "about": dict(report.about), "rows": report.rows, "speakers": report.speakers,
        "clips": [*clips],
    }  # fmt: skip
    write_json(report.folder / "report.json", data)
