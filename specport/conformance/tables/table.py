"""The hardware matrix as text, Markdown and HTML. Everything that is shown may come from other machines."""

from __future__ import annotations

from collections.abc import Sequence

from specport.conformance.tables.results import CHECKS, DeviceRun, Matrix
from specport.outside.shown import html_page, in_markdown

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border: 1px solid #ccc; padding: .25rem .6rem; text-align: left; }
.pass { background: #d8f0d8; } .fail { background: #f6c7c7; font-weight: bold; }
.emulated { background: #dbe7f7; } .xfail { background: #f8eac2; } .not-run { color: #767676; }
"""
LEGEND = (
    "emulated: passes, with other hardware in the device's place. xfail: fails, and is known to. "
    "not run: see the reasons below."
)


def _rows(matrix: Matrix) -> list[tuple[str, ...]]:
    return [
        (_name(device), device.machine, *(device.cell(check).state for check in CHECKS))
        for device in matrix.devices
    ]


def _name(device: DeviceRun) -> str:
    return f"{device.device} (EMULATED)" if device.emulated else device.device


def reasons(matrix: Matrix) -> list[tuple[str, str]]:
    """What is behind every cell that is no pass: (device and checks, reason)."""
    found: list[tuple[str, str]] = []
    for device in matrix.devices:
        if device.note:
            found.append((_name(device), device.note))
        by_reason: dict[str, list[str]] = {}
        for check, cell in device.checks.items():
            if cell.reason:
                by_reason.setdefault(f"{cell.state}: {cell.reason}", []).append(check)
        found += [(f"{_name(device)}, {', '.join(checks)}", reason) for reason, checks in by_reason.items()]
    return found


def text(matrix: Matrix) -> str:
    """For a terminal: no machines, since there is mostly one."""
    lines = [("DEVICE", *CHECKS), *((name, *states) for name, _, *states in _rows(matrix))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    out = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    out += ["", *(f"{where}: {_one_line(why)}" for where, why in reasons(matrix))]
    return "\n".join(line.rstrip() for line in out) + "\n"


def markdown(matrix: Matrix) -> str:
    parts = [
        "# Hardware matrix",
        md_table(("device", "machine", *CHECKS), _rows(matrix)),
        LEGEND,
        "## Reasons",
        "\n".join(f"- {in_markdown(where)}: {in_markdown(why)}" for where, why in reasons(matrix)) or "None.",
        "## Provenance",
        *(
            "\n".join(f"- {in_markdown(key)}: {in_markdown(value)}" for key, value in machine.items())
            for machine in matrix.machines
        ),
    ]
    return "\n\n".join(parts) + "\n"


def page(matrix: Matrix) -> str:
    """One HTML file with everything in it."""
    rows = [
        (_name(device), device.machine, [device.cell(check) for check in CHECKS]) for device in matrix.devices
    ]
    return html_page(
        _PAGE, style=_STYLE, head=("device", "machine", *CHECKS), rows=rows, legend=LEGEND,
        reasons=reasons(matrix), machines=matrix.machines,
    )  # fmt: skip


_PAGE = """\
<!doctype html>
<html lang='en'><head><meta charset='utf-8'><title>specport hardware matrix</title>
<style>{{ style }}</style></head><body><h1>Hardware matrix</h1>
<table><tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for device, machine, cells in rows %}
<tr><td>{{ device|visible }}</td><td>{{ machine|visible }}</td>
{%- for cell in cells %}
<td class="{{ cell.state.replace(' ', '-') }}" title="{{ cell.reason|visible }}">{{ cell.state }}</td>
{%- endfor %}
</tr>
{% endfor %}
</table>
<p>{{ legend }}</p>
<h2>Reasons</h2><dl>
{% for where, reason in reasons %}
<dt>{{ where|visible }}</dt><dd><pre>{{ reason|visible }}</pre></dd>
{% endfor %}
</dl>
<h2>Provenance</h2>
{% for machine in machines %}
<ul>{% for key, value in machine.items() %}<li>{{ key|visible }}: {{ value|visible }}</li>{% endfor %}</ul>
{% endfor %}
</body></html>
"""


def md_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; its cells are escaped."""
    lines = [head, ["---"] * len(head), *([in_markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _one_line(reason: str) -> str:
    return " ".join(reason.split())
