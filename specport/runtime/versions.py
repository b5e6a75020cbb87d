"""Versions of installed packages, read without importing any of them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

import specport


def installed(packages: Iterable[str]) -> dict[str, str]:
    """specport's own version, then those of `packages` that are installed."""
    found = {"specport": specport.__version__}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
