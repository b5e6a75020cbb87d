"""What a model was loaded with: its context, the budget of its cache, and the key of its measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from specport.backends.torch import devices
from specport.backends.torch.slots.batch import Widths

from specport.runtime.devices.profiles import cpu_name
from specport.runtime.devices.registry import LoadOptions, settings_key

if TYPE_CHECKING:
    from specport.models.source import ModelFiles

_DEFAULT_CONTEXT = 2048  # for a configuration that names no limit


@dataclass(frozen=True)
class Scheme:
    """Hold the restrictions on a decoding round.

    decode: allowed widths; () = those of the profile.
    batch:  whether sequences share a forward pass.
    tree:   whether tokens may have other attention masks than a chain's.
    """

    decode: tuple[int, ...] = ()
    batch: bool = True
    tree: bool = True


def context_limit(config: Any, options: LoadOptions) -> int:
    """Return the most tokens of a sequence."""
    longest: int = getattr(config, "max_position_embeddings", None) or _DEFAULT_CONTEXT
    return min(longest, options.max_context or longest)


def budget(free: Callable[[], int], options: LoadOptions) -> Callable[[], int]:
    """Return a function that returns the most bytes of the cache.

    A cache that grows is copied, so the whole new one must fit the free memory.
    """
    given = options.cache_bytes
    return free if given is None else lambda: min(given, free())


def key(files: ModelFiles, options: LoadOptions, widths: Widths, scheme: Scheme, **more: object) -> str:
    """Return a key of everything that decides which kernels run; measurements are stored under it."""
    return settings_key(
        options,
        runtime=f"torch {torch.__version__}",
        device=options.profile.name,
        processor=devices.name_of(options.profile) or cpu_name(),
        weights=files.fingerprint,
        precision=files.precision,
        threads=torch.get_num_threads(),
        widths=(widths.decode, widths.read, widths.least),
        scheme=(scheme.batch, scheme.tree),
        **more,
    )
