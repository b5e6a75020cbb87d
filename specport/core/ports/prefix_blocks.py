"""The port for blocks of a cache that outlive their sequence, so that others can begin with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

KeptBlock = Any  # each model has its own type: pass only what the same model returned


class PrefixBlocks(Protocol):
    """Keep blocks of a model's cache, and open sequences that begin with them (`Model.prefix_blocks`).

    Block i of a sequence holds its tokens from i * size to (i + 1) * size. What it holds depends on these
    tokens and all before them, and on nothing else, so it belongs at the same place of any sequence with the
    same beginning. In exact mode a sequence that begins with kept blocks has the logits of one that was read.
    """

    @property
    def size(self) -> int:
        """Return the tokens of a block."""
        ...

    @property
    def most(self) -> int:
        """Return how many blocks may be kept."""
        ...

    @property
    def shared(self) -> bool:
        """Return whether kept blocks take room of the cache, and sequences that begin with them no more."""
        ...

    def keep(self, handle: Any, index: int) -> KeptBlock:
        """Keep a block of committed tokens; later writes and the end of its sequence do not change it."""
        ...

    def open(self, blocks: Sequence[KeptBlock], capacity: int) -> Any:
        """Open a sequence that begins with these blocks, with room for `capacity` tokens; return its handle.

        Raises ContextFull as `Model.open` does.
        """
        ...

    def drop(self, block: KeptBlock) -> bool:
        """Stop keeping a block; return whether this freed room of the cache."""
        ...

    def dump(self, block: KeptBlock) -> NDArray[np.uint8]:
        """Return a copy of a block's content, for `load` by the same model in any process."""
        ...

    def load(self, content: NDArray[np.uint8]) -> KeptBlock:
        """Keep a block with this content.

        Raises ValueError for content of another size, and ContextFull where there is no room.
        """
        ...
