"""The limits of one rendering of a chat template: time, steps, and the size of what is made.

A template comes with a model and is untrusted. What it makes is measured before it is made, wherever one
operation can make much of little.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jinja2

MOST_SECONDS = 5.0
MOST_STEPS = 2_000_000  # loop steps and calls
MOST_SIZE = 1 << 24  # characters and entries of one value
MOST_MADE = 1 << 27  # of all values together
MOST_WIDTH = 10_000  # that a text is padded or indented to
MOST_BITS = 4096  # of a whole number
MOST_SOURCE = 1 << 20  # characters of a template

# Widths of five digits, and those that come from a value. Each takes time in proportion to the text.
_WIDE = {"%": re.compile(r"[%)][-#0 +]*(?:[0-9]*\.)?[0-9]{5,}"), "{": re.compile(r"\{[^{}]*[0-9]{5,}")}
_CHOSEN = {"%": re.compile(r"%[^a-zA-Z%]*\*"), "{": re.compile(r"\{[^{}]*\{")}


class TooMuch(jinja2.TemplateRuntimeError):
    """A template that goes beyond a limit."""


class Budget:
    """Count what one rendering has used. Raises TooMuch."""

    def __init__(self) -> None:
        self._end = time.monotonic() + MOST_SECONDS
        self._steps = self._made = 0

    def step(self) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise TooMuch(f"it takes more than {MOST_STEPS:,} steps")
        if time.monotonic() > self._end:
            raise TooMuch(f"it takes more than {MOST_SECONDS:g} seconds")

    def make(self, size: int) -> None:
        require(size)
        self._made += size
        if self._made > MOST_MADE:
            raise TooMuch(f"it makes more than {MOST_MADE:,} characters")


CURRENT: ContextVar[Budget] = ContextVar("CURRENT")


def require(size: int) -> None:
    """Raise TooMuch for a value of this size."""
    if size > MOST_SIZE:
        raise TooMuch(f"it makes a value of more than {MOST_SIZE:,} characters")


def weight(value: Any) -> int:
    """Return the characters and entries of a value written out; parts that occur twice count twice.

    Takes time for each different part only: `[x, x]`, repeated, grows without end and takes no memory.
    """
    known: dict[int, int] = {}

    def of(part: Any, depth: int) -> int:
        if isinstance(part, (str, bytes)):
            return 1 + len(part)
        if not isinstance(part, (list, tuple, dict)):
            return 1
        if id(part) not in known:
            if depth > 100:
                raise TooMuch("it makes a value of more than 100 levels")
            inner = part if not isinstance(part, dict) else [*part, *part.values()]
            known[id(part)] = 1 + sum(of(each, depth + 1) for each in inner)
        return known[id(part)]

    return of(value, 0)


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a loop, each as a step."""
    budget = CURRENT.get()
    for item in items:
        budget.step()
        yield item


def made(value: Any) -> Any:
    """Return a value that was just made, once it is counted."""
    if isinstance(value, (str, bytes)):
        CURRENT.get().make(len(value))
    elif isinstance(value, (list, tuple, dict)):
        CURRENT.get().make(len(value))
        require(weight(value))
    return value


def cut(value: Any) -> Any:
    """Return a slice, once it is counted. Its parts were counted when they were made."""
    if isinstance(value, (str, bytes, list, tuple)):
        CURRENT.get().make(len(value))
    return value


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Raise TooMuch where the result would be too large."""
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers:
        bits = abs(left).bit_length() * max(right, 0)
    elif operator == "*" and numbers:
        bits = abs(left).bit_length() + abs(right).bit_length()
    else:
        bits = 0
    if bits > MOST_BITS:
        raise TooMuch(f"it makes a number of more than {MOST_BITS} bits")
    if numbers:
        return
    if operator == "*":
        some, times = (right, left) if isinstance(left, int) else (left, right)
        require(weight(some) * max(times, 0) if isinstance(times, int) else 0)
    elif operator == "+":
        sizes = [len(each) for each in (left, right) if isinstance(each, (str, bytes, list, tuple))]
        require(sum(sizes))
    elif operator == "%" and isinstance(left, (str, bytes)):
        check_format(str(left), right, "%")


def check_format(text: str, values: Any, mark: str) -> None:
    """Raise TooMuch where a text that values are put into could become too large."""
    form = text.replace("{{", "") if mark == "{" else text
    if _WIDE[mark].search(form) or _CHOSEN[mark].search(form):
        raise TooMuch(f"it pads texts to more than {MOST_WIDTH:,} characters")
    require(len(text) + (text.count(mark) + 1) * weight(values))


def check_call(name: str, own: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Raise TooMuch where a method of a text or a filter would make too much of little.

    name: of the method or filter. own: the value that it is called on.
    """
    values = (*args, *options.values())
    numbers = [abs(value) for value in values if isinstance(value, int)]
    if name in _PADDING and max(numbers, default=0) > MOST_WIDTH:
        raise TooMuch(f"{name} is asked for more than {MOST_WIDTH:,}")
    size = weight(own) if name in _WRITING or isinstance(own, (str, bytes)) else 0
    require(size)
    if name == "replace" and isinstance(own, (str, bytes)) and len(values) > 1:
        old, new = values[:2]
        try:
            require(size + own.count(old) * (weight(new)))
        except TypeError:
            require(size * weight(new))
    elif name == "join":
        # A filter joins what it is called on, a method its argument.
        some, between = (values[0], own) if isinstance(own, str) and values else (own, values[:1])
        count = len(some) if isinstance(some, (list, tuple, dict, str)) else 0
        require(weight(some) + count * weight(between))
    elif name in ("translate", "wordwrap", "expandtabs"):
        require(size * max(map(weight, values), default=1) if name != "expandtabs" else size * 8)
    elif name == "indent" and isinstance(own, str):
        width = weight(values[0]) if values and isinstance(values[0], str) else max(numbers, default=4)
        require(size + (own.count("\n") + 1) * width)
    elif name == "tojson":
        require(size * max(numbers, default=1))
    elif name == "format":
        check_format(str(own), values, "%")
    elif name == "sum" and any(not isinstance(value, (int, float, str)) for value in values):
        raise TooMuch("sum is for numbers")


_PADDING = frozenset({
    "center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes", "indent", "wordwrap", "tojson", "batch",
    "slice", "round", "lipsum",
})  # fmt: skip
_WRITING = frozenset({"string", "tojson", "pprint", "join", "sum", "escape", "e", "forceescape", "urlencode"})
