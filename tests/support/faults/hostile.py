"""Texts that break readers: deep, wide, wrong in type, or not text at all. Each stands for a kind."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

JSON_TEXTS: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "no JSON": b"\x00\x01\x02",
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep but whole": b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "infinite": b'{"a": Infinity}',
    "no number": b'{"a": NaN}',
    "too large a float": b'{"a": 1e999}',
    "5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "100 digits": b'{"a": ' + b"9" * 100 + b"}",
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "half a surrogate pair as a name": b'{"\\ud800": 1}',
    "a name with NUL": b'{"a\\u0000": "\\u0000"}',
}

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 31, 1 << 63, 10**30, 1e308, -0.0, float("inf"), float("nan"), "", "x", "\x00",
    "\u2028", "\ud800", "../../x", "/dev/zero", "x" * 300, [], [[]], {}, {"a": {}}, [0, 1 << 24],
    [[0, 1 << 24]] * 50,
)  # fmt: skip


def changed(value: Any) -> Iterator[Any]:
    """Yield copies of a plain value in which one part is gone, or is another value of `VALUES`."""
    for path in _paths(value):
        if path:
            gone = copy.deepcopy(value)
            del _at(gone, path[:-1])[path[-1]]
            yield gone
        for other in VALUES:
            if not path:
                yield other
                continue
            new = copy.deepcopy(value)
            _at(new, path[:-1])[path[-1]] = other
            yield new


def dumped(value: Any) -> bytes:
    """Return a value as JSON; numbers that are none as Python writes them."""
    return json.dumps(value).encode()


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield before
    if isinstance(value, dict):
        for key in value:
            yield from _paths(value[key], (*before, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 2)):
            yield from _paths(value[i], (*before, i))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
