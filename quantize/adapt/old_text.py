"""Old text for an adaptation: that of the draft's original build, else what the target writes now."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from specport.quantize.text import shards
from specport.quantize.text.turns import MADE_UP, OWN
from specport.quantize.train.pace import MOST_SEED

from specport.core.ports import Model
from specport.models.bundle import Bundle
from specport.models.cache import cache_root
from specport.models.safe_files import UnsafeFile, check_name
from specport.progress import Progress
from specport.text.tokenizer import Tokenizer
from specport.traffic.dialogues import Dialogue, read_shards

_LEAST_TOKENS = 4096  # of answers that the target writes at least


def find(bundle: Bundle) -> list[Dialogue]:
    """Return the text that is in the cache for this draft, in the order in which it was written.

    The first texts are those that the original build held out. Empty where there is none. Raises ModelError.
    """
    paths = stored(bundle)
    return read_shards(paths) if len(paths) > 1 else []


def stored(bundle: Bundle) -> list[Path]:
    """Return the files of that text."""
    for folder in _folders(bundle):
        if paths := sorted(folder.glob("*.npz"), key=_order):
            return paths
    return []


def write(
    load: Callable[[], Model], tokenizer: Tokenizer, bundle: Bundle, num_tokens: int, progress: Progress
) -> list[Dialogue]:
    """Let the target write at least `num_tokens` tokens of text, which stay in the cache.

    load: loads the target. Raises SpecportError.
    """
    folder = shards.folder_for(bundle.target_fingerprint, (), _seed(bundle.distilled))
    wanted = max(num_tokens, _LEAST_TOKENS)
    seed = _seed(bundle.distilled)
    return read_shards(shards.write_shards(load, tokenizer, folder, wanted, seed, (), progress, least=2))


def _folders(bundle: Bundle) -> list[Path]:
    named = bundle.distilled.get(shards.TEXT)
    folders = []
    with suppress(UnsafeFile):  # drafts of earlier versions do not name it
        folders.append(cache_root() / "text" / check_name(named))
    return [*folders, shards.folder_for(bundle.target_fingerprint, (), _seed(bundle.distilled))]


def _seed(distilled: Any) -> int:
    seed = distilled.get("seed", 0)
    return seed if isinstance(seed, int) and 0 <= seed <= MOST_SEED else 0


def _order(path: Path) -> tuple[int, int]:
    """Return the place of a shard in the order of `turns.plan_shards`."""
    kind, _, number = path.stem.rpartition("-")
    if not number.isdigit():
        return 1 << 30, 0
    if kind == OWN:
        return int(number), 0
    return len(MADE_UP) * int(number) + (MADE_UP.index(kind) if kind in MADE_UP else 0), 1
