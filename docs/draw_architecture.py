"""Draw the pictures of docs/architecture.md: the floors of the package, and the path of one round.

    python docs/draw_architecture.py

Floors and rooms are those of the table FLOORS in tests/, what a room is for is said in docs/architecture.md.
An arrow is an import of the installed package; imports that a longer way implies are left out.
The stages of a round name the functions that work on them. tests/test_architecture.py compares the committed
pictures with what is drawn here.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FLOORS_SVG, ROUND_SVG = (ROOT / "docs" / f"architecture-{name}.svg" for name in ("floors", "round"))
Floors = Sequence[Mapping[str, Sequence[str]]]

WIDTH, MARGIN, LABEL = 960, 16, 34
ROOM_HEIGHT, GAP, FLOOR_GAP = 62, 12, 34
INK, PALE, LINE = "#1f2933", "#52606d", "#9aa5b1"
FILLS = ("#e3f2e1", "#dcecf7", "#e9e4f5", "#fdf0d5", "#fbe4df")


@dataclass(frozen=True)
class Stage:
    """One stage of a round. code: "file:function" of what works on it; draw_round checks that it exists."""

    title: str
    text: str
    code: Sequence[str]


ROUND = (
    Stage("waiting", "A text is added by any thread. It waits until the cache has room for it.",
          ("specport/core/engine.py:add", "specport/core/scheduler.py:add")),
    Stage("admitted", "The first in the queue gets a cache. Where it is full, idle caches go first.",
          ("specport/core/scheduler.py:next_round", "specport/core/scheduler.py:_admit")),
    Stage("prompt chunk, or drafts", "An unread prompt brings a chunk, a text that decodes a drafted tree.",
          ("specport/core/decoding/speculative.py:round", "specport/core/planning/planner.py:draft")),
    Stage("one step", "The target reads all rows, chunks and trees alike, in one step.",
          ("specport/core/verify/verifier.py:verify", "backends/openvino/paged/model.py:step")),
    Stage("verdicts", "A rule accepts a path of each tree and adds one token of the target's own.",
          ("specport/core/verify/rules.py:accept", "specport/core/verify/scores.py:probs")),
    Stage("commit", "The cache keeps the path, the text gets the tokens, drafters and planner learn.",
          ("specport/core/sequence.py:append", "specport/core/planning/planner.py:observe")),
)  # fmt: skip


def floors() -> Floors:
    """Return the table FLOORS of the tests, ground first: room -> names of modules. Nothing is imported."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "FLOORS" not in source:
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FLOORS" and node.value:
                table: Floors = ast.literal_eval(node.value)
                return table
    raise LookupError("no module in tests/ has a table FLOORS")


def room_imports(table: Floors) -> dict[str, set[str]]:
    """Return which lower rooms each room imports, by the imports of all modules of the installed package.

    Imports that lead up are left out; tests/test_floors.py refuses them.
    """
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    from support.imports import Package, room_of

    package = Package.installed("specport")
    used: dict[str, set[str]] = {room: set() for rooms in table for room in rooms}
    for found in package.inner:
        here, there = (room_of(package.short(name), table) for name in (found.importer, found.imported))
        if here and there and there[0] < here[0]:
            used[here[1]].add(there[1])
    return used


def roles() -> dict[str, tuple[int, str]]:
    """Return room -> (floor, what it is for), from the table of docs/architecture.md."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {room: (int(level), role) for level, room, role in rows}


def essential(used: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Return the imports without those that a longer way implies (transitive reduction of a graph)."""

    def below(room: str) -> set[str]:
        return used[room].union(*(below(other) for other in used[room]))

    return {
        room: sorted(other for other in others if not any(other in below(o) for o in others - {other}))
        for room, others in used.items()
    }


def draw_floors(table: Floors, used: Mapping[str, set[str]], about: Mapping[str, tuple[int, str]]) -> str:
    """Return the picture of the floors, the roof at the top.

    used: room -> rooms that it imports; about: as `roles` returns it.
    """
    height = 2 * MARGIN + len(table) * (ROOM_HEIGHT + FLOOR_GAP) - FLOOR_GAP
    places: dict[str, tuple[float, float, float]] = {}  # left, top, width
    for level, rooms in enumerate(table):
        width = (WIDTH - 2 * MARGIN - LABEL - GAP * (len(rooms) - 1)) / len(rooms)
        top = height - MARGIN - ROOM_HEIGHT - level * (ROOM_HEIGHT + FLOOR_GAP)
        for i, room in enumerate(rooms):
            places[room] = (MARGIN + LABEL + i * (width + GAP), top, width)
    parts = []
    arrows = essential(used)
    arriving = {room: [upper for upper in arrows if room in arrows[upper]] for room in arrows}
    for upper, lowers in arrows.items():
        for i, lower in enumerate(sorted(lowers, key=lambda room: places[room][0])):
            (x0, y0, w0), (x1, y1, w1) = places[upper], places[lower]
            order = sorted(arriving[lower], key=lambda room: places[room][0])
            start = x0 + w0 * (i + 1) / (len(lowers) + 1)
            end = x1 + w1 * (order.index(upper) + 1) / (len(order) + 1)
            parts.append(_arrow(start, y0 + ROOM_HEIGHT, end, y1))
    for level, rooms in enumerate(table):
        for room in rooms:
            left, top, width = places[room]
            fill = FILLS[level % len(FILLS)]
            parts.append(_box(left, top, width, ROOM_HEIGHT, fill))
            parts.append(_text(left + 10, top + 20, room, size=13, bold=True))
            parts += _paragraph(left + 10, top + 36, about[room][1].replace("`", ""), int((width - 16) / 6.0))
        top = places[next(iter(rooms))][1]
        parts.append(_text(MARGIN, top + ROOM_HEIGHT / 2 + 4, str(level), size=13, fill=PALE))
    return _svg(height, "The floors of specport: a room imports rooms below it", parts)


def draw_round(stages: Sequence[Stage] = ROUND) -> str:
    """Return the picture of one round. Raises LookupError where a stage names code that does not exist."""
    for stage in stages:
        for code in stage.code:
            _check(code)
    columns, gap, tall = 3, 40, 118
    width = (WIDTH - 2 * MARGIN - gap * (columns - 1)) / columns
    height = 2 * MARGIN + 2 * tall + 64
    parts, places = [], []
    for i, stage in enumerate(stages):
        row, column = divmod(i, columns)
        column = columns - 1 - column if row else column  # the second row runs back
        left, top = MARGIN + column * (width + gap), MARGIN + row * (tall + 64)
        places.append((left, top))
        parts.append(_box(left, top, width, tall, FILLS[1 if i < 2 else 3 if i < 4 else 0]))
        parts.append(_text(left + 12, top + 22, f"{i + 1}. {stage.title}", size=14, bold=True))
        parts += _paragraph(left + 12, top + 42, stage.text, int((width - 20) / 6.1), lines=3, size=12)
        for n, code in enumerate(stage.code):
            path, _, name = code.partition(":")
            shown = f"{Path(path).name}: {name}"
            parts.append(_text(left + 12, top + tall - 24 + 14 * n, shown, size=11, fill=PALE, mono=True))
    middle = tall / 2
    for (x0, y0), (x1, y1) in pairwise(places):
        if y0 != y1:
            parts.append(_arrow(x0 + width / 2, y0 + tall, x1 + width / 2, y1))
        elif x1 > x0:
            parts.append(_arrow(x0 + width, y0 + middle, x1, y1 + middle, flat=True))
        else:
            parts.append(_arrow(x0, y0 + middle, x1 + width, y1 + middle, flat=True))
    (x0, y0), (x1, y1) = places[-1], places[1]
    parts.append(_arrow(x0 + width / 2, y0, x1 + width / 4, y1 + tall))
    parts.append(_text(x0 + 12, y0 - 12, "next round", size=12, fill=PALE))
    return _svg(height, "One round of the engine", parts)


def _check(code: str) -> None:
    path, _, name = code.partition(":")
    file = ROOT / path
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
    if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.walk(tree)):
        raise LookupError(f"{code} does not exist")


def _box(left: float, top: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" '
        f'fill="{fill}" stroke="{LINE}"/>'
    )


def _text(x: float, y: float, text: str, *, size: int, bold: bool = False, fill: str = INK,
          mono: bool = False) -> str:  # fmt: skip
    weight = ' font-weight="bold"' if bold else ""
    family = ' font-family="monospace"' if mono else ""
    style = f'font-size="{size}" fill="{fill}"{weight}{family}'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _paragraph(
    x: float, y: float, text: str, columns: int, *, lines: int = 2, size: int = 11
) -> Iterator[str]:
    wrapped = textwrap.wrap(text, columns, max_lines=lines, placeholder=" ...", break_long_words=False)
    for i, line in enumerate(wrapped):
        yield _text(x, y + i * (size + 3), line, size=size, fill=PALE)


def _arrow(x0: float, y0: float, x1: float, y1: float, *, flat: bool = False) -> str:
    bend = (y1 - y0) / 2
    way = "L" if flat else f"C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} "
    return (
        f'<path d="M{x0:.1f} {y0:.1f} {way}{x1:.1f} {y1:.1f}" fill="none" stroke="{LINE}" '
        'stroke-width="1.4" marker-end="url(#head)"/>'
    )


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
            f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif">',
            f"<title>{escape(title)}</title>",
            f"<defs>{head}</defs>",
            f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> None:
    table = floors()
    floors_picture = draw_floors(table, room_imports(table), roles())
    for path, picture in ((FLOORS_SVG, floors_picture), (ROUND_SVG, draw_round())):
        path.write_text(picture, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
