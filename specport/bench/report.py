"""Format figures as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specport.bench.summary import Figures
from specport.errors import SpecportError

Table = Mapping[str, Mapping[str, Figures]]


def markdown(table: Table, about: Mapping[str, Any]) -> str:
    """Return the tables by category, the details of each method, and the settings behind the figures."""
    categories = [*dict.fromkeys(c for groups in table.values() for c in groups)]
    parts = ["# Benchmark\n", _provenance(about)]
    for title, cell in (
        ("Decode speed-up over plain (geometric mean)", lambda f: _number(f.decode)),
        ("End-to-end speed-up over plain (geometric mean)", lambda f: _number(f.end_to_end)),
    ):
        parts.append(_by_category(title, table, categories, cell))
    head = (
        "method", "TPOT ms", "TTFT ms", "quartiles", "by total time", "tokens a step", "draft", "verify",
        "same text", "first difference",
    )  # fmt: skip
    rows = [_details(name, groups["all"]) for name, groups in table.items()]
    parts.append("## Methods\n\n" + _table(head, rows))
    positions = [
        (name, ", ".join(f"{rate:.2f}" for rate in groups["all"].acceptance_per_position[:10]))
        for name, groups in table.items()
        if groups["all"].acceptance_per_position
    ]
    parts.append("## Acceptance rate by position\n\n" + _table(("method", "1, 2, 3, ..."), positions))
    parts.append("## Settings\n\n```json\n" + json.dumps(about.get("methods", {}), indent=1) + "\n```\n")
    return "\n".join(parts)


def _details(name: str, f: Figures) -> tuple[str, ...]:
    quartiles = f"{f.low:.2f} to {f.high:.2f}" if f.low is not None and f.high is not None else ""
    difference = "" if f.first_difference is None else f"token {f.first_difference:.0f}"
    shares = [("" if share is None else f"{share:.0%}") for share in (f.draft_share, f.verify_share)]
    return (
        name, f"{f.tpot_ms:.1f}", f"{f.ttft_ms:.0f}", quartiles, _number(f.total),
        _number(f.mean_acceptance_length), *shares, f"{f.same}/{f.prompts}", difference,
    )  # fmt: skip


def _by_category(title: str, table: Table, categories: list[str], cell: Callable[[Figures], str]) -> str:
    rows = [
        (name, *(cell(groups[c]) if c in groups else "" for c in categories))
        for name, groups in table.items()
    ]
    return f"## {title}\n\n" + _table(("method", *categories), rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---", *("---:" for _ in head[1:])), *rows]
    # Names come from files: escape bars, which end a cell, and tags, which would be live in the page.
    cells = (" | ".join(html.escape(cell).replace("|", "&#124;") for cell in line) for line in lines)
    return "".join(f"| {line} |\n" for line in cells)


def _provenance(about: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in about.items() if key != "methods"}
    return "".join(f"- {key}: {_plain(value)}\n" for key, value in facts.items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return html.escape(", ".join(f"{key} {item}" for key, item in value.items()))
    return html.escape(str(value))


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ccc; padding: .25rem .75rem; text-align: right; }
td:first-child, th:first-child { text-align: left; }
pre { background: #f4f4f4; padding: 1rem; overflow: auto; }
svg { max-width: 100%; height: auto; }
"""


def page(table: Table, about: Mapping[str, Any]) -> str:
    """Return one self-contained HTML page. Raises SpecportError where the drawing packages are missing."""
    try:
        import markdown as converter
    except ImportError as error:
        raise SpecportError("the HTML page needs more packages", "pip install 'specport[bench]'") from error
    body = converter.markdown(markdown(table, about), extensions=["tables", "fenced_code"])
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>specport benchmark</title>"
        f"<style>{_STYLE}</style></head><body>{_plot(table)}{body}</body></html>\n"
    )


def _plot(table: Table) -> str:
    """Return a bar chart of decode speed-up by category, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = [name for name in table if name != "plain"]
    categories = [*dict.fromkeys(c for groups in table.values() for c in groups)]
    figure, axis = pyplot.subplots(figsize=(11, 4.5))
    width = 0.8 / max(1, len(methods))
    for i, name in enumerate(methods):
        heights = [(table[name][c].decode or 0.0) if c in table[name] else 0.0 for c in categories]
        axis.bar([x + i * width for x in range(len(categories))], heights, width, label=name)
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks([x + 0.4 - width / 2 for x in range(len(categories))], categories)
    axis.set_ylabel("decode speed-up over plain")
    axis.legend(fontsize=8)
    axis.grid(axis="y", alpha=0.3)
    text = io.StringIO()
    figure.savefig(text, format="svg")
    pyplot.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
