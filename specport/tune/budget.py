"""Read and write amounts of time: `30m`, `90s`, `1h`."""

from __future__ import annotations

import re

from specport.errors import InvalidInput

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
LEAST_S = 10.0


def parse(text: str) -> float:
    """Return the seconds of a text like `30m`, `90s`, `1h` or `1h30m`; a bare number means minutes.

    Raises InvalidInput for any other text, and for less than LEAST_S seconds.
    """
    plain = text.strip().lower().replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", plain)
    if re.fullmatch(r"\d+(\.\d+)?", plain):
        seconds = 60.0 * float(plain)
    elif parts and "".join(number + unit for number, unit in parts) == plain:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        raise InvalidInput(f"{text!r} is no amount of time", "write it like 30m, 90s or 1h")
    if seconds < LEAST_S:
        raise InvalidInput(f"a budget of {text} is too short", f"give {LEAST_S:.0f}s or more")
    return seconds


def written(seconds: float) -> str:
    """Return an amount of time for people: `45 s`, `3 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
