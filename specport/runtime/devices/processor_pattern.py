"""Patterns of processors' names in profiles: regular expressions that are sure to end soon.

Python's `re` has no limit of time. Repeats within repeats take exponential time; repeats and alternatives in
a row multiply theirs. So repeated groups are refused; numbers of both and the text's length are bounded.
"""

from __future__ import annotations

import re

_MOST_CHARACTERS, _MOST_PARTS = 100, 4
_MOST_NAME = 80  # characters of a processor's name that are looked at
_PLAIN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)  # escapes and sets


def problem(pattern: object) -> str | None:
    """Return why this is no pattern that can be used, or None."""
    try:
        re.compile(pattern)  # type: ignore[call-overload]
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        return f"it is not a regular expression: {error}"
    if not isinstance(pattern, str) or len(pattern) > _MOST_CHARACTERS:
        return f"it has more than {_MOST_CHARACTERS} characters"
    plain = _PLAIN.sub("x", pattern).replace("(?:", "(")
    if re.search(r"\)[*+?{]", plain) or "(?" in plain or re.search(r"\\[1-9]", pattern):
        return "it repeats a group, or looks around or back, which may take for ever"
    if len(re.findall(r"[*+?{(]", plain)) > _MOST_PARTS:
        return f"it has more than {_MOST_PARTS} repeats and groups, which may take for ever"
    return None


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern without a `problem` describes the processor of that name."""
    return re.search(pattern, name[:_MOST_NAME], re.IGNORECASE) is not None
