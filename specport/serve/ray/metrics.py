"""The metrics of all replicas as one page: they differ in the label "engine"."""

from __future__ import annotations

from collections.abc import Iterable


def joined(pages: Iterable[bytes]) -> bytes:
    """Return the samples of all pages, those of one metric side by side, as Prometheus wants them."""
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for page in pages:
        name = b""
        for line in page.splitlines():
            if line.startswith(b"# HELP "):
                name = line.split(b" ", 3)[2]
                if name not in heads:
                    heads[name], samples[name] = [line], []
            elif line.startswith(b"# TYPE "):
                if len(heads[name]) == 1:
                    heads[name].append(line)
            elif line:
                samples[name].append(line)
    lines = [line for name in heads for line in (*heads[name], *samples[name])]
    return b"".join(line + b"\n" for line in lines)
