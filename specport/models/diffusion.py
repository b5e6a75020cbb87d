"""What is known of a masked-diffusion language model before it is loaded. Plain data.

Such a model fills in masks: its logits at a mask are those of the token that stands there. It has no port of its
own: a backend loads it behind `specport.core.ports.Model`, with `Capabilities.visibility == "any"` and `gather`.
Each row then brings its own attention mask (`specport.core.block.Block.visible`), and what it commits to the cache
is up to the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What a token of the prompt attends to, and what committed text does in the same way: all earlier tokens; all
# earlier tokens and its own block of `block_length`, counted from position 0; every token of the sequence.
Context = Literal["causal", "blocks", "full"]


@dataclass(frozen=True)
class DiffusionFacts:
    """Hold how a masked-diffusion model was trained.

    mask_id:      token id of the mask.
    block_length: tokens of a block, the unit that it denoises. Within its block each token and each mask attends
                  to all others.
    context:      what prompt and committed text attend to. "full" models have no cache that stays valid.
    shifted:      the logits at a position are those of the token behind it (Dream), as in autoregressive models.
    """

    mask_id: int
    block_length: int
    context: Context = "blocks"
    shifted: bool = False
