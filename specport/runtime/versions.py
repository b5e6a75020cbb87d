"""Read the versions of specport and of installed packages without importing them."""

from __future__ import annotations

from collections.abc import Iterable

VERSION = "0.1.0"


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return specport's own version, then those of `packages` that are installed."""
    from importlib import metadata  # imported late: `import specport` loads this file and must be fast

    found = {"specport": VERSION}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
