"""Memory limits of key/value caches: the free memory of the machine, and the share that a cache may take."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Literal

import psutil

from specport.errors import InvalidInput

# A target's cache holds whole conversations. A draft is smaller, and is loaded after its target.
_SHARES = {"target": 0.4, "draft": 0.2}
_LEAST_SHARE = 0.1  # of free memory that is counted as free beside the weights
_UNITS = {
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+|%)\s*", re.ASCII)


# Folder and file names of the two versions of Linux control groups, and the entry of memory.stat that counts
# file pages which the kernel drops first: usage includes them.
_V2 = ("", "memory.max", "memory.current", "inactive_file")
_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_bytes() -> int:
    """Return the bytes of main memory that this process can use without swapping.

    In a container, psutil reports the memory of the host; the container's limit counts as well.
    """
    free = int(psutil.virtual_memory().available)
    limited = cgroup_free_bytes() if sys.platform == "linux" else None
    return free if limited is None else min(free, limited)


def cgroup_free_bytes(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return the bytes that the memory limits of this process's control groups leave; None = no limit.

    root:       where control groups are mounted.
    membership: file with the groups of this process, as lines "id:controllers:path"; cgroups(7).
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    left: list[int] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            folder, *names = _V2
        elif "memory" in controllers.split(","):
            folder, *names = _V1
        else:
            continue
        mount = root / folder
        own = mount / path.strip("/")
        # A limit holds for all groups below it. In a container, the path may be the host's: then only the
        # mount itself exists, which is the container's group.
        groups = [own, *own.parents][: 1 + len(own.relative_to(mount).parts)]
        left += [free for group in groups if (free := _left(group, *names)) is not None]
    return min(left, default=None)


def _left(group: Path, limit_name: str, usage_name: str, dropped_name: str) -> int | None:
    """Return the bytes that one control group may still take; None where it has no limit."""
    try:
        limit = (group / limit_name).read_text(encoding="ascii").strip()
        usage = int((group / usage_name).read_text(encoding="ascii"))
        stats = (group / "memory.stat").read_text(encoding="ascii").split()
        # Version 1 writes a number beyond any memory where there is no limit.
        if limit == "max" or int(limit) >= 1 << 60:
            return None
        dropped = int(dict(zip(stats[::2], stats[1::2], strict=True)).get(dropped_name, 0))
        return max(0, int(limit) - usage + dropped)
    except (OSError, ValueError):  # not there, or of another form
        return None


def default_share(role: Literal["target", "draft"], weights: int = 0) -> int:
    """Return the bytes that the cache of a model in this role may take: a share of what is free.

    weights: bytes of its weights, where they are not in memory yet. A model that takes all that is free gets
    a small cache rather than none, as estimates of free memory are rough.
    """
    free = free_bytes()
    return int(_SHARES[role] * max(free - weights, free * _LEAST_SHARE))


def slim_share(cache_bytes: int, num_layers: int, num_skipped: int) -> int:
    """Return the bytes of a target's cache that are its slim verifier's, which has fewer layers."""
    kept = num_layers - num_skipped
    return cache_bytes * kept // (num_layers + kept)


def kept_share(cache_bytes: int) -> int:
    """Return the bytes that copies of a cache's rows may take beside it (`core.copied_blocks`)."""
    return cache_bytes // 4


def parse(text: str) -> int:
    """Return the bytes of an amount like "4GB", "512MiB" or "30%" (of what is free now).

    MB and GB are powers of ten, MiB and GiB powers of two. Raises InvalidInput for anything else.
    """
    found = _AMOUNT.fullmatch(text)
    if found is not None:
        number, unit = float(found[1]), found[2].upper()
        if unit == "%" and 0 < number <= 100:
            return int(free_bytes() * number / 100)
        if (amount := _amount(number, unit)) > 0:
            return amount
    raise InvalidInput(f"{text!r} is not an amount of memory", "write it like 4GB, 512MB or 30%")


def parse_bytes(text: str) -> int:
    """Return the bytes of an amount like "4GB" or "512MiB". Raises InvalidInput for anything else."""
    found = _AMOUNT.fullmatch(text)
    amount = _amount(float(found[1]), found[2].upper()) if found is not None else 0
    if amount <= 0:
        raise InvalidInput(f"{text!r} is not a size", "write it like 4GB or 512MB")
    return amount


def _amount(number: float, unit: str) -> int:
    return int(number * _UNITS.get(unit, 0))
