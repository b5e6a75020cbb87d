"""Prefix caches for loaded models, as the user wants them: in memory, on disk too, or none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specport.core.prefix_cache import PrefixCache
from specport.errors import InvalidInput
from specport.outside.places import expanded
from specport.runtime.caches import memory
from specport.runtime.caches.block_files import BlockFolder
from specport.runtime.devices.registry import Loaded
from specport.runtime.versions import installed

_FORMAT = 1  # increase when the content of a backend's blocks changes its order
_PACKAGES = ("openvino", "torch", "transformers")


@dataclass(frozen=True)
class Prefixes:
    """Make the prefix caches of a target and its drafts.

    folder: of the blocks on disk; None = memory only.
    """

    on: bool = True
    folder: BlockFolder | None = None

    @classmethod
    def parse(cls, where: bool | str | Path, size: str) -> Prefixes:
        """Return the choice of a user: False = none, True = in memory, a folder = on disk too.

        size: most bytes in the folder, as in "4GB". Raises InvalidInput.
        """
        most = memory.parse_bytes(size)
        if isinstance(where, bool):
            return cls(where)
        if not str(where):
            raise InvalidInput("the prefix cache has an empty name", "name a folder with --prefix-cache")
        return cls(True, BlockFolder(expanded(where), most))

    def of(self, loaded: Loaded) -> PrefixCache | None:
        """Return a prefix cache for a model; None where there is to be none, or it cannot keep blocks.

        Raises InvalidInput where the folder cannot be used.
        """
        if not self.on or loaded.model.prefix_blocks is None:
            return None
        store = None if self.folder is None or not loaded.key else self.folder.of(_key(loaded))
        return PrefixCache.of(loaded.model, store)

    def flush(self) -> None:
        """Wait until all kept blocks are on disk."""
        if self.folder is not None:
            self.folder.flush()


def _key(loaded: Loaded) -> str:
    """Return a key of everything that decides what a block of a model holds, to the bit.

    `Loaded.key` names weights, precision, processor, settings and numerics mode, but not what hardly changes
    the time of a step.
    """
    model = loaded.model
    facts = (_FORMAT, loaded.key, model.capabilities, model.prefix_blocks and model.prefix_blocks.size)
    exit_layer = model.early_exit.layer if model.early_exit else 0
    return repr((*facts, exit_layer, model.mtp is not None, sorted(installed(_PACKAGES).items())))
