"""Show texts that come from outside on a terminal, in Markdown and in HTML, as text and nothing else."""

from __future__ import annotations

import html
import re
from typing import Any, TextIO

# Show C0 and C1 controls except tab and newline as visible signs; a carriage return would hide text.
VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20)},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
    **{ord("\t"): ord("\t"), ord("\n"): ord("\n"), ord("\r"): None},
}
# The colours that the command line uses itself. From elsewhere they do no harm, as each ends with its line.
_COLOURS = re.compile(r"(\x1b\[(?:0|1|2|3[0-6]|1;31)m)")


def on_terminal(text: str, stream: TextIO) -> str:
    """Return a text without control characters if the stream is a terminal, else as it is."""
    return visible(text) if stream.isatty() else text


def visible(text: str) -> str:
    """Return a text whose control characters are visible signs; colours stay."""
    parts = _COLOURS.split(text)
    return "".join(part if i % 2 else part.translate(VISIBLE) for i, part in enumerate(parts))


def in_markdown(text: str) -> str:
    """Return text that is only text in one line of Markdown: no tag, no end of a cell, no link, no code."""
    escaped = html.escape(" ".join(text.translate(VISIBLE).split()))
    for mark in "\\`*[]|":
        escaped = escaped.replace(mark, f"&#{ord(mark)};")
    return escaped.replace("://", "&#58;//")  # some renderers make links of bare addresses


def html_page(template: str, **values: Any) -> str:
    """Return a page. All values are escaped where the template shows them, unless it says `safe`."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    return environment.from_string(template).render(**values)
