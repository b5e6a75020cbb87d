"""The beginnings of prompts, and which replica has read which: the basis for choosing a replica.

A prompt's text is cut into blocks, whose names are chained hashes as those of the prefix cache. Text stands
for tokens: the front has no tokenizer, and equal text gives equal tokens.
"""

from __future__ import annotations

import json
import random
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from specport.core.block_names import chained

BLOCK = 128  # bytes of a block at most: about the 32 tokens of a block of the prefix cache
MOST_BLOCKS = 512  # of a prompt; what follows plays no part
NAME = 8  # bytes of a block's name: enough to tell a million texts apart
MOST_NAMES = 100_000  # that an index holds, some 30 MB
QUEUE_BLOCKS = 4.0  # a running request costs as much as so many blocks that have to be read


def names_of(request: Mapping[str, Any]) -> tuple[bytes, ...]:
    """Return the names of the blocks of a request's prompt, in order.

    A message ends a block, so that a conversation's next request begins with the same names, however short
    the messages are. A request with several prompts goes by its first.
    """
    blocks = (part[i : i + BLOCK] for part in _parts(request) for i in range(0, len(part), BLOCK))
    return tuple(name[:NAME] for name in islice(chained(blocks), MOST_BLOCKS))


def _parts(request: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the text of each tool and message, or of the prompt: what templates put first comes first."""
    for field in ("tools", "messages"):
        value = request.get(field)
        for each in value if isinstance(value, list) else ():
            yield json.dumps(each, sort_keys=True).encode()
    prompt = request.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if prompt:
        yield json.dumps(prompt).encode()


def packed(names: Sequence[bytes]) -> bytes:
    """Return names in one piece, as replicas report them."""
    return b"".join(names)


def unpacked(report: bytes) -> list[bytes]:
    """Return the names of a report."""
    return [report[start : start + NAME] for start in range(0, len(report), NAME)]


class Recent:
    """Hold the names of the blocks that were used last, at most `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: OrderedDict[bytes, None] = OrderedDict()  # least recently used first

    def add(self, names: Sequence[bytes]) -> None:
        for name in reversed(names):  # of one text the last block goes first
            self._names[name] = None
            self._names.move_to_end(name)
        while len(self._names) > self._most:
            self._names.popitem(last=False)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._names)


class PrefixIndex:
    """Hold which replicas have read which blocks, as far as is known.

    most: names; the least recently used go first.
    """

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._holders: OrderedDict[bytes, set[str]] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, names: Sequence[bytes], replica: str) -> None:
        """Say that a replica has read these blocks."""
        for name in reversed(names):  # of one text the last block goes first
            self._holders.setdefault(name, set()).add(replica)
            self._holders.move_to_end(name)
        while len(self._holders) > self._most:
            self._holders.popitem(last=False)

    def forget(self, replicas: Collection[str]) -> None:
        """Forget what replicas that are gone have read."""
        gone = {*replicas}
        for name in [name for name, holders in self._holders.items() if holders & gone]:
            self._holders[name] -= gone
            if not self._holders[name]:
                del self._holders[name]

    def matched(self, names: Sequence[bytes]) -> dict[str, int]:
        """Return how many of the first blocks each replica has read; those with none are left out."""
        found: dict[str, int] = {}
        for depth, name in enumerate(names):
            holders = self._holders.get(name, set())
            going = [replica for replica in holders if found.get(replica, 0) == depth]
            if not going:
                break
            found.update(dict.fromkeys(going, depth + 1))
        return found


def ranked(
    num_blocks: int,
    matched: Mapping[str, int],
    queues: Mapping[str, int],
    full: int,
    draw: random.Random,
    queue_blocks: float = QUEUE_BLOCKS,
) -> list[str]:
    """Return the replicas, the best one for a prompt first.

    A replica costs what it has to read of the prompt, and for each request that it has a constant. Full ones
    come last, whatever they have read. Equal ones come in random order.

    num_blocks: of the prompt.
    matched:    see `PrefixIndex.matched`.
    queues:     the number of each replica's requests.
    full:       requests that a replica runs at once.
    """

    def cost(replica: str) -> tuple[bool, float, float]:
        unread = num_blocks - matched.get(replica, 0)
        return queues[replica] >= full, unread + queue_blocks * queues[replica], draw.random()

    return sorted(queues, key=cost)
