"""Format figures as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specport.bench.prompts import TOTALS
from specport.bench.summary import Figures
from specport.calibration.methods import PLAIN
from specport.errors import SpecportError
from specport.outside.shown import html_page, in_markdown, visible

Table = Mapping[str, Mapping[str, Figures]]


@dataclass(frozen=True)
class _Section:
    """A table of the report: names and numbers as text, not yet escaped for any format."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def _sections(table: Table) -> list[_Section]:
    """Return the tables by category and the details of each method."""
    categories = [*dict.fromkeys(c for groups in table.values() for c in groups)]
    head = (
        "method", "TPOT ms", "TTFT ms", "quartiles", "by total time", "tokens a step", "draft", "verify",
        "same text", "first difference",
    )  # fmt: skip
    positions: list[tuple[str, ...]] = [
        (name, ", ".join(f"{rate:.2f}" for rate in groups[TOTALS].acceptance_per_position[:10]))
        for name, groups in table.items()
        if groups[TOTALS].acceptance_per_position
    ]
    return [
        *(
            _Section(
                f"{what} speed-up over plain (geometric mean)",
                ("method", *categories),
                [(name, *(cell(groups, c) for c in categories)) for name, groups in table.items()],
            )
            for what, cell in (("Decode", _decode), ("End-to-end", _end_to_end))
        ),
        _Section("Methods", head, [_details(name, groups[TOTALS]) for name, groups in table.items()]),
        _Section("Acceptance rate by position", ("method", "1, 2, 3, ..."), positions),
    ]


def _decode(groups: Mapping[str, Figures], category: str) -> str:
    return _number(groups[category].decode) if category in groups else ""


def _end_to_end(groups: Mapping[str, Figures], category: str) -> str:
    return _number(groups[category].end_to_end) if category in groups else ""


def markdown(table: Table, about: Mapping[str, Any]) -> str:
    """Return the tables by category, the details of each method, and the settings behind the figures."""
    parts = ["# Benchmark\n", "".join(f"- {key}: {in_markdown(value)}\n" for key, value in _facts(about))]
    for section in _sections(table):
        lines = [map(in_markdown, section.head), ("---", *("---:" for _ in section.head[1:]))]
        lines += [map(in_markdown, row) for row in section.rows]
        parts.append(f"## {section.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    parts.append(f"## Settings\n\n```json\n{_settings(about)}\n```\n")
    return "\n".join(parts)


def _details(name: str, f: Figures) -> tuple[str, ...]:
    quartiles = f"{f.low:.2f} to {f.high:.2f}" if f.low is not None and f.high is not None else ""
    difference = "" if f.first_difference is None else f"token {f.first_difference:.0f}"
    shares = [("" if share is None else f"{share:.0%}") for share in (f.draft_share, f.verify_share)]
    return (
        name, f"{f.tpot_ms:.1f}", f"{f.ttft_ms:.0f}", quartiles, _number(f.total),
        _number(f.mean_acceptance_length), *shares, f"{f.same}/{f.prompts}", difference,
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was measured, and how, as names and texts."""
    return [(key, _plain(value)) for key, value in about.items() if key != "methods"]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def _settings(about: Mapping[str, Any]) -> str:
    """Return the settings of the methods as JSON in ASCII, which has no line that ends a block of code."""
    return json.dumps(about.get("methods", {}), indent=1)


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ccc; padding: .25rem .75rem; text-align: right; }
td:first-child, th:first-child { text-align: left; }
pre { background: #f4f4f4; padding: 1rem; overflow: auto; }
svg { max-width: 100%; height: auto; }
"""


_PAGE = """\
<!doctype html>
<html lang='en'><head><meta charset='utf-8'><title>specport benchmark</title>
<style>{{ style }}</style></head><body>{{ plot|safe }}
<h1>Benchmark</h1>
<ul>
{% for key, value in facts %}
<li>{{ key|visible }}: {{ value|visible }}</li>
{% endfor %}
</ul>
{% for section in sections %}
<h2>{{ section.title }}</h2>
<table>
<tr>{% for name in section.head %}<th>{{ name|visible }}</th>{% endfor %}</tr>
{% for row in section.rows %}
<tr>{% for cell in row %}<td>{{ cell|visible }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
<h2>Settings</h2>
<pre>{{ settings }}</pre>
</body></html>
"""


def page(table: Table, about: Mapping[str, Any]) -> str:
    """Return one self-contained HTML page. Raises SpecportError where the drawing package is missing."""
    return html_page(
        _PAGE, style=_STYLE, plot=_plot(table), facts=_facts(about), sections=_sections(table),
        settings=_settings(about),
    )  # fmt: skip


def _plot(table: Table) -> str:
    """Return a bar chart of decode speed-up by category, as SVG. Raises SpecportError."""
    try:
        import matplotlib
    except ImportError as error:
        raise SpecportError("the HTML page needs more packages", "pip install 'specport[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = [name for name in table if name != PLAIN]
    categories = [*dict.fromkeys(c for groups in table.values() for c in groups)]
    pyplot.rcParams["text.parse_math"] = False  # names are no formulas
    figure, axis = pyplot.subplots(figsize=(11, 4.5))
    width = 0.8 / max(1, len(methods))
    for i, name in enumerate(methods):
        heights = [(table[name][c].decode or 0.0) if c in table[name] else 0.0 for c in categories]
        axis.bar([x + i * width for x in range(len(categories))], heights, width, label=visible(name))
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks([x + 0.4 - width / 2 for x in range(len(categories))], [*map(visible, categories)])
    axis.set_ylabel("decode speed-up over plain")
    axis.legend(fontsize=8)
    axis.grid(axis="y", alpha=0.3)
    text = io.StringIO()
    figure.savefig(text, format="svg")
    pyplot.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
