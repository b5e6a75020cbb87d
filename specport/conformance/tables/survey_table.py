"""The table of architectures as text, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from specport.conformance.tables.survey import Table, count
from specport.conformance.tables.table import md_table
from specport.errors import InvalidInput
from specport.models.atomic import write_atomically
from specport.outside.shown import in_markdown

FORMAT = 1
LEGEND = (
    "exact: logits are those of transformers, and greedy texts with n-gram, recycled and model drafts, "
    "alone and four together, are those of plain decoding. differs: the texts are, the logits are not. "
    "refused: the model is not loaded, in one line, for the reason below. absent: the installed "
    "transformers does not have it. failed: a fault."
)
_HEAD = "architecture"


def _rows(table: Table) -> list[tuple[str, ...]]:
    return [(name, *(cell.state for cell in row.values())) for name, row in table.items()]


def _devices(table: Table) -> list[str]:
    return [*dict.fromkeys(device for row in table.values() for device in row)]


def reasons(table: Table) -> list[tuple[str, str]]:
    """Return what is behind every cell that is not exact: (device and architectures, state and reason)."""
    of: dict[tuple[str, str], list[str]] = {}
    for name, row in table.items():
        if row and all(cell.state == "absent" for cell in row.values()):
            of.setdefault(("", "absent: the installed transformers does not have it"), []).append(name)
            continue
        for device, cell in row.items():
            if cell.reason:
                of.setdefault((device, f"{cell.state}: {cell.reason}"), []).append(name)
    order = sorted(of, key=lambda key: key[0])
    return [(", ".join(filter(None, (device, *of[device, why]))), why) for device, why in order]


def _counts(table: Table) -> list[str]:
    lines = []
    for device in _devices(table):
        told = ", ".join(f"{number} {state}" for state, number in count(table, device).items())
        lines.append(f"{device}: {told}")
    return lines


def text(table: Table) -> str:
    """Return the table for a terminal."""
    lines = [(_HEAD.upper(), *_devices(table)), *_rows(table)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    out = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    out += ["", *_counts(table), "", *(f"{where}: {why}" for where, why in reasons(table))]
    return "\n".join(line.rstrip() for line in out) + "\n"


def markdown(table: Table, machine: Mapping[str, str]) -> str:
    """Return the table for the documentation. machine: facts about where it was made."""
    parts = [
        "# Architectures",
        "Made by `specport matrix --architectures --out docs`, with tiny models of random weights.",
        LEGEND,
        "\n".join(f"- {in_markdown(line)}" for line in _counts(table)),
        md_table((_HEAD, *_devices(table)), _rows(table)),
        "## Reasons",
        "\n".join(f"- {in_markdown(where)}: {in_markdown(why)}" for where, why in reasons(table)) or "None.",
        "## Provenance",
        "\n".join(f"- {in_markdown(key)}: {in_markdown(value)}" for key, value in machine.items()),
    ]
    return "\n\n".join(parts) + "\n"


def as_json(table: Table, machine: Mapping[str, str]) -> str:
    """Return the table as JSON."""
    rows = {name: {device: asdict(cell) for device, cell in row.items()} for name, row in table.items()}
    return json.dumps({"format": FORMAT, "machine": dict(machine), "architectures": rows}, indent=1) + "\n"


def write(table: Table, machine: Mapping[str, str], folder: Path) -> Sequence[Path]:
    """Write architectures.json and architectures.md. Raises InvalidInput where they cannot be written."""
    files = {"architectures.json": as_json(table, machine), "architectures.md": markdown(table, machine)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise InvalidInput(f"cannot write to {folder}: {error.strerror or error}") from error
    return [folder / name for name in files]
