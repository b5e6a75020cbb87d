"""What the HumanEval benchmark keeps, and the table that comes of it. Pure arithmetic, and files."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.bench.summary import first_difference, tpot
from specport.calibration.methods import PLAIN, Spec, parse
from specport.errors import InvalidInput
from specport.models.precision import parse as parse_precision

BASELINE = "fp16"
Key = tuple[str, str]  # (row or precision, problem)
HEAD = (
    "configuration", "precision", "draft", "pass@1", "TTFT ms", "TPOT ms", "quartiles", "over the baseline",
    "over its plain run", "mean acceptance length", "same text",
)  # fmt: skip
NOTES = f"""\
- pass@1: greedy, one answer a problem, share of answers that pass its test. A drafted row has the text of its
  plain one, hence its pass@1; where a timed text differs, or numerics are not exact, it is left empty.
- TTFT and TPOT: medians over the timed problems, one prompt at a time;
  TPOT = (total - TTFT) / (output tokens - 1).
- Speed-ups: of TPOT, geometric means over the timed problems; the baseline is {BASELINE}, plain.
- Mean acceptance length: tokens a verify step with draft tokens commits, bonus token counted.
- Same text: timed texts that are token for token those of the plain run; of a plain row, those that it wrote
  in batches for pass@1.
"""


@dataclass(frozen=True)
class Row:
    """A line of the table: a precision and a way to decode."""

    name: str
    precision: str
    spec: Spec

    @property
    def plain(self) -> Row:
        return Row(self.precision, self.precision, parse(PLAIN))


def parse_row(text: str) -> Row:
    """PRECISION or PRECISION+METHOD. Raises InvalidInput."""
    left, plus, method = text.partition("+")
    precision = str(parse_precision(left))
    if plus and not method:
        raise InvalidInput(f"cannot read the row {text!r}", "write it like int8 or int8+draft")
    spec = parse(method or PLAIN)
    return Row(precision if spec.name == PLAIN else f"{precision}+{method}", precision, spec)


class Lines(Mapping[Key, Mapping[str, Any]]):
    """A file of JSON lines, read by key. A line that was torn while it was written is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[Key, Mapping[str, Any]] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        whole = []
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self._rows[row["row"], row["id"]] = row
                whole.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        if not text.endswith("\n"):  # the next line would join it
            _replace(path, "".join(whole))

    def add(self, key: Key, **values: Any) -> None:
        row = {"row": key[0], "id": key[1], **values}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._rows[key] = row

    def __getitem__(self, key: Key) -> Mapping[str, Any]:
        return self._rows[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class Results:
    """A folder with answers, verdicts and times, and the facts that they all were made under.

    answers, verdicts: (precision, problem) -> line; times: (row, problem) -> line.
    Raises InvalidInput for a folder that cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "about.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.answers, self.verdicts, self.times = (
                Lines(folder / f"{name}.jsonl") for name in ("answers", "verdicts", "times")
            )
            text = self._path.read_text(encoding="utf-8") if self._path.is_file() else "{}"
            self.facts: dict[str, Any] = json.loads(text)
        except (OSError, ValueError) as error:
            raise InvalidInput(f"cannot use the folder {folder}: {error}") from error

    def settle(self, facts: Mapping[str, Any]) -> None:
        """Note these facts. Raises InvalidInput where one was another when the folder was begun."""
        for name, value in facts.items():
            if self.facts.get(name, value) != value:
                raise InvalidInput(
                    f"{self._path.parent} was begun with another {name}: {self.facts[name]}, now {value}",
                    "give another folder with --out, or remove this one",
                )
        self.facts |= facts
        _replace(self._path, json.dumps(self.facts, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def markdown(
    rows: Sequence[Row], results: Results, ids: Sequence[str], timed: Sequence[str], about: Mapping[str, Any]
) -> str:
    """The report. ids: problems that were answered at every precision; timed: those decoded by every row."""
    lines = [HEAD, ("---", "---", "---", *("---:" for _ in HEAD[3:]))]
    lines += [_cells(row, results, ids, timed) for row in rows]
    table = "".join(
        "| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |\n" for line in lines
    )
    cut = [
        f"{precision} {sum(results.answers[precision, i]['finish_reason'] == 'length' for i in ids)}"
        for precision in dict.fromkeys(row.precision for row in rows)
    ]
    facts = "".join(
        f"- {name}: {value}\n" for name, value in {**about, "answers cut off": ", ".join(cut)}.items()
    )
    return f"# HumanEval\n\n{table}\n{NOTES}\n{facts}"


def _cells(row: Row, results: Results, ids: Sequence[str], timed: Sequence[str]) -> tuple[str, ...]:
    own = [results.times[row.name, i] for i in timed]
    tpots = [1e3 * tpot(line) for line in own if tpot(line)]
    plain = row.spec.name == PLAIN
    before = results.answers if plain else results.times
    same = sum(
        first_difference(line["tokens"], before[row.precision, line["id"]]["tokens"]) is None for line in own
    )
    passed = sum(results.verdicts[row.precision, i]["passed"] for i in ids)
    exact = results.facts.get(f"numerics {row.precision}") == "exact"
    known = plain or (exact and same == len(own))
    quartiles = statistics.quantiles(tpots, n=4) if len(tpots) > 1 else []
    return (
        row.name,
        row.precision,
        _draft(row, results.facts),
        f"{passed / len(ids):.1%} ({passed}/{len(ids)})" if known else "",
        f"{1e3 * statistics.median(line['ttft_s'] for line in own):.0f}",
        f"{statistics.median(tpots):.1f}" if tpots else "",
        f"{quartiles[0]:.1f} to {quartiles[2]:.1f}" if quartiles else "",
        _speed_up(row.name, BASELINE, results, timed),
        "" if plain else _speed_up(row.name, row.precision, results, timed),
        "" if plain else _acceptance_length([line["metrics"] for line in own]),
        f"{same}/{len(own)}",
    )


def _draft(row: Row, facts: Mapping[str, Any]) -> str:
    """What drafts, and how much of it."""
    if row.spec.name == PLAIN:
        return "none"
    model = facts.get("draft", "draft")
    names = [model if name == "draft" else name for name in row.spec.draft.split("|")]
    return f"{' or '.join(names)}, {row.spec.name.partition('@')[2] or row.spec.drafting.policy}"


def _speed_up(row: str, base: str, results: Results, timed: Sequence[str]) -> str:
    """Geometric mean of TPOT over TPOT, on the problems that both have one for; empty where there is none."""
    ratios = [
        tpot(results.times[base, i]) / tpot(results.times[row, i])
        for i in timed
        if all((name, i) in results.times and tpot(results.times[name, i]) for name in (base, row))
    ]
    return f"{statistics.geometric_mean(ratios):.2f}" if ratios else ""


def _acceptance_length(metrics: Sequence[Mapping[str, Any]]) -> str:
    steps = sum(m["num_drafts"] for m in metrics)
    return f"{1 + sum(m['num_accepted_tokens'] for m in metrics) / steps:.2f}" if steps else "1.00"
