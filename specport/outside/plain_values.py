"""Parse JSON and TOML into plain values whose depth and numbers are bounded."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_DEPTH = 64  # real files have less than ten levels
_SIGNED, _UNSIGNED = -(1 << 63), 1 << 64
# Values of a JSON text. Python takes up to 250 bytes for each, whatever few bytes a file needs to say it.
_MOST_VALUES, _MOST_FOREIGN = 1 << 20, 5 << 19  # a tokenizer has two million
_MOST_DOTS = 256  # in a line of TOML: a key may have as many parts
_MOST_SHOWN = 200  # characters of a parser's message: it may quote the file


def from_json(data: bytes) -> Any:
    """Return the value of a JSON text in UTF-8, a byte-order mark allowed. Raises ValueError."""
    _check_count(data, _MOST_VALUES)
    return _parsed(lambda text: json.loads(text, parse_constant=_refused), data)


def from_toml(data: bytes) -> Any:
    """Return the tables of a TOML text. Raises ValueError."""
    if max(line.count(b".") for line in data.split(b"\n")) > _MOST_DOTS:  # each costs a walk from the root
        raise ValueError(f"it has a line with more than {_MOST_DOTS} dots")
    return _parsed(lambda text: tomllib.loads(text.replace("\r\n", "\n")), data)


def from_foreign_json(data: bytes) -> Any:
    """Return the value of a JSON text of a model's authors, with any number that Python can read.

    Mamba has `Infinity` in config.json, and many tokenizers have 10^30 in theirs. Raises ValueError.
    """
    _check_count(data, _MOST_FOREIGN)
    return _parsed(json.loads, data, any_number=True)


def check(value: Any, *, any_number: bool = False) -> None:
    """Raise ValueError where a plain value has too many levels, or holds what no file of ours needs.

    That is text that is no Unicode and, unless `any_number`, numbers that are infinite or wider than 64 bits.
    """
    level = [value]
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each)
                below.extend(each.values())
            elif isinstance(each, (list, tuple)):
                below.extend(each)
            elif isinstance(each, str):
                _check_text(each)
            elif not any_number:
                _check_number(each)
        if not below:
            return
        level = below
    raise ValueError(f"it is nested more than {MOST_DEPTH} levels deep")


def _parsed(parse: Any, data: bytes, *, any_number: bool = False) -> Any:
    try:
        value = parse(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"it is nested more than {MOST_DEPTH} levels deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None
    except (ValueError, ArithmeticError) as error:  # not in the format, or a number of 5,000 digits
        raise ValueError(str(error)[:_MOST_SHOWN]) from None
    check(value, any_number=any_number)
    return value


def _check_count(data: bytes, most: int) -> None:
    """Raise ValueError for more values than `most`; marks in texts count, too."""
    if sum(map(data.count, (b"[", b"{", b","))) > most:
        raise ValueError(f"it has more than {most:,} values")


def _check_number(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, int) and not _SIGNED <= value < _UNSIGNED:
        raise ValueError("it has a whole number of more than 64 bits")


def _check_text(value: str) -> None:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("it has half of a surrogate pair in a text") from None


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")
