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
# The colours that the command line uses itself; not black, which hides text. Whoever writes them, they end
# with the text that is shown.
_RESET = "\x1b[0m"
_COLOURS = re.compile(r"(\x1b\[(?:0|1|2|3[1-6]|1;31)m)")


def on_terminal(text: str, stream: TextIO) -> str:
    """Return a text as it is, or for a terminal with visible signs for control characters.

    Colours stay, and end with the text.
    """
    if not stream.isatty():
        return text
    parts = _COLOURS.split(text)
    if len(parts) > 1 and parts[-2] != _RESET:
        parts.append(_RESET)
    return "".join(part if i % 2 else visible(part) for i, part in enumerate(parts))


def visible(text: str) -> str:
    """Return a text with visible signs for all its control characters."""
    return text.translate(VISIBLE)


def in_markdown(text: str) -> str:
    """Return text that is only text in one line of Markdown: no tag, no end of a cell, no link, no code."""
    escaped = html.escape(" ".join(visible(text).split()))
    for mark in "\\`*[]|":
        escaped = escaped.replace(mark, f"&#{ord(mark)};")
    return escaped.replace("://", "&#58;//")  # some renderers make links of bare addresses


def html_page(template: str, **values: Any) -> str:
    """Return a page. All values are escaped where the template shows them, unless it says `safe`."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    return environment.from_string(template).render(**values)
