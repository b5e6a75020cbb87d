"""Memory limits of key/value caches: the free memory of the machine, and the share that a cache may take."""

from __future__ import annotations

import re
from typing import Literal

import psutil

from specport.errors import InvalidInput

# A target's cache holds whole conversations. A draft is smaller, and is loaded after its target.
_SHARES = {"target": 0.4, "draft": 0.2}
_UNITS = {
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+|%)\s*", re.ASCII)


def free_bytes() -> int:
    """Return the bytes of main memory that programs can use without swapping."""
    return int(psutil.virtual_memory().available)


def default_share(role: Literal["target", "draft"]) -> int:
    """Return the bytes that the cache of a model in this role may take: a share of what is free now."""
    return int(_SHARES[role] * free_bytes())


def parse(text: str) -> int:
    """Return the bytes of an amount like "4GB", "512MiB" or "30%" (of what is free now).

    MB and GB are powers of ten, MiB and GiB powers of two. Raises InvalidInput for anything else.
    """
    found = _AMOUNT.fullmatch(text)
    if found is not None:
        number, unit = float(found[1]), found[2].upper()
        if unit == "%" and 0 < number <= 100:
            return int(free_bytes() * number / 100)
        amount = int(number * _UNITS.get(unit, 0))
        if amount > 0:
            return amount
    raise InvalidInput(f"{text!r} is not an amount of memory", "write it like 4GB, 512MB or 30%")
