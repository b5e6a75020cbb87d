"""Load a masked-diffusion language model: any decoder on slots, with a mask of its own for each row.

Denoising steps read whole blocks, verification reads a block and its masks, and decoding without a cache
reads the whole text: so many tokens may be one decode step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from specport.backends.torch import devices, settings, weights
from specport.backends.torch.runners import Eager
from specport.backends.torch.slots.attention import ATTENTION, attention
from specport.backends.torch.slots.batch import WIDEST, Widths
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.model import SlotModel
from specport.backends.torch.slots.step import StepModule
from specport.quantize.convert import diffusion
from transformers import AttentionInterface

from specport.errors import ModelError
from specport.models.precision import TORCH_DTYPES
from specport.runtime.caches import memory
from specport.runtime.devices.registry import Loaded, LoadOptions

if TYPE_CHECKING:
    from specport.models.source import ModelFiles

_WIDEST = 2048  # tokens of a step, at most: each slot has twice as many rows to spare


def load_diffusion(files: ModelFiles, options: LoadOptions, place: devices.Place) -> Loaded:
    """Return the model in `files.folder`. Raises ModelError or DeviceError.

    Its steps round in any way: there is no exact mode.
    """
    if options.exit_layer or options.hidden_layers or options.head_tokens is not None:
        raise ModelError("a diffusion model has no early exit, no hidden states and no cut head")
    AttentionInterface.register(ATTENTION, attention)
    model = diffusion.read(files.folder, getattr(torch, TORCH_DTYPES[files.precision]), ATTENTION)
    vocab_size = model.get_output_embeddings().out_features
    limit = settings.context_limit(model.config.get_text_config(decoder=True), options)
    experts = any("experts" in name for name, _ in model.named_modules())
    weights.place(model, files.name, place.device)
    cache = SlotCache(model.dtype, place.device)
    module = StepModule(model, cache)
    # How many tokens an expert gets is only known on the way, which a graph cannot wait for.
    runner = Eager(module, place.device) if experts else place.runner(module)
    buckets = options.profile.buckets if runner.captures else ()
    widest = min(limit, _WIDEST)
    widths = Widths(_decode(buckets, widest), buckets, 1, widest=widest)
    found = SlotModel(
        runner,
        cache,
        vocab_size=vocab_size,
        max_context=limit,
        widths=widths,
        exact=False,
        static=bool(buckets),
        whole=place.whole,
        budget=settings.budget(place.free, options),
        kept_bytes=memory.kept_share(options.cache_bytes or memory.default_share(options.role)),
    )
    notes = (*place.notes, *([options.profile.emulation] if options.profile.emulation else ()))
    return Loaded(found, notes, settings.key(files, options, widths, settings.Scheme()))


def _decode(buckets: tuple[int, ...], widest: int) -> tuple[int, ...]:
    """Return the widths of steps, () = any: those of a profile, and powers of two up to the widest."""
    found = sorted(width for width in buckets if width <= WIDEST)
    while found and found[-1] < widest:
        found.append(2 * found[-1])
    return tuple(found)
