"""Names of a text's blocks: each is a hash of the block and of the name of the block before it.

Equal names thus mean equal texts up to the block's end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator


def chained(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the name of each block of a text, 32 bytes long."""
    name = b""
    for block in blocks:
        name = hashlib.sha256(name + block).digest()
        yield name
