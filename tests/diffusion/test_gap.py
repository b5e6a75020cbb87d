"""The gap between the logits of slots and native denoising: none with one layer, never assumed to be none."""

from __future__ import annotations

import pytest
from support.tiny.tiny_diffusion import tiny_diffusion

from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.diffusion.context import Context
from specport.diffusion.denoise import denoise
from specport.diffusion.gap import gap, native
from specport.diffusion.options import LAYOUTS, DiffusionOptions

SURE = 1e-9


@pytest.mark.parametrize("known", [0, 2])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_gap(layers: int, known: int) -> None:
    context = Context(tiny_diffusion(3, layers=layers))
    context.start([1, 2, 3, 4, 5, 6, 7, 8], True, 4)
    block = denoise(context, 4, DiffusionOptions(), Sampler(SamplingParams()), [9, 3][:known])
    passes = native(context, block.tokens, block.times, known)
    assert passes.argmax(axis=1).tolist() == block.tokens[known:]  # as the block was denoised
    found = {kind: gap(context, kind, block.tokens, block.times, passes, known) for kind in LAYOUTS}
    assert all(len(each.variation) == len(each.same) == 4 - known for each in found.values())
    worst = {kind: max(each.variation) for kind, each in found.items()}
    if layers == 1:  # a slot is read from embeddings: with all masks of its time it is the native pass
        assert worst["grouped"] < SURE and worst["released"] < SURE < worst["same-step"]
    else:
        assert all(SURE < value <= 1 for value in worst.values())
    assert layers > 1 or all(found["grouped"].same)
    context.close()
