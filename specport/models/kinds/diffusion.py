"""What is known of a masked-diffusion language model before it is loaded. Plain data.

Such a model fills in masks: its logits at a mask are those of the token that stands there. It has no port of
its own: a backend loads it behind `specport.core.ports.Model`, with `Capabilities.visibility == "any"` and
`gather`. Each row then brings its own attention mask (`specport.core.block.Block.visible`), and what it
commits to the cache is up to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from specport.errors import ModelError
from specport.models.json_file import read_json, whole

# What a token of the prompt attends to, and what committed text does in the same way: all earlier tokens; all
# earlier tokens and its own block of `block_length`, counted from position 0; every token of the sequence.
Context = Literal["causal", "blocks", "full"]


@dataclass(frozen=True)
class DiffusionFacts:
    """Hold how a masked-diffusion model was trained.

    mask_id:      token id of the mask.
    block_length: tokens of a block, the unit that it denoises. Within its block each token and each mask
                  attends to all others.
    context:      what prompt and committed text attend to. "full" models have no cache that stays valid.
    shifted:      the logits at a position are those of the token behind it (Dream), as in autoregressive
                  models.
    """

    mask_id: int
    block_length: int
    context: Context = "blocks"
    shifted: bool = False


KIND = "block_diffusion"  # model_type of what `specport quantize diffusion` makes
BASE = "base_model_type"  # its decoder's, in transformers
_MASK, _BLOCK = "mask_token_id", "block_size"
_MOST_BLOCK = 4096
# What models of each model_type are, where their configuration does not say it: SDAR (JetAstra/SDAR), LLaDA 2
# (inclusionAI), Dream (Dream-org), with blocks as their published samplers use them. Dream's
# denoises the whole answer at once; here it has blocks too, so that text comes before all of it is done.
_FAMILIES = {
    "sdar": DiffusionFacts(151669, 4),
    "llada2_moe": DiffusionFacts(156895, 32),
    "Dream": DiffusionFacts(151666, 32, context="full", shifted=True),
    KIND: DiffusionFacts(0, 4),
}


def _family(config: Mapping[str, Any]) -> DiffusionFacts | None:
    kind = config.get("model_type")
    return _FAMILIES.get(kind) if isinstance(kind, str) else None


def is_diffusion(config: Mapping[str, Any]) -> bool:
    """Return whether a model's config.json says that it fills in masks."""
    return _family(config) is not None


def facts_of(config: Mapping[str, Any], where: Path) -> DiffusionFacts:
    """Return what the configuration of a diffusion model says. Raises ModelError for that of another one."""
    known = _family(config)
    if known is None:
        raise ModelError(
            f"{where}: {config.get('model_type')!r} is no diffusion model that runs here",
            f"those that do are {', '.join(_FAMILIES)}",
        )
    vocab = whole(dict(config), "vocab_size", 1 << 24)
    mask = known.mask_id if config.get(_MASK) is None else whole(dict(config), _MASK, 1 << 24)
    block = known.block_length if config.get(_BLOCK) is None else whole(dict(config), _BLOCK, _MOST_BLOCK)
    if vocab is None or not mask or mask >= vocab or block is None:
        raise ModelError(
            f"{where}: a mask of id {config.get(_MASK)!r} and blocks of {config.get(_BLOCK)!r} tokens in a "
            f"vocabulary of {config.get('vocab_size')!r} cannot be used",
            "check that it is a complete diffusion model",
        )
    return DiffusionFacts(mask, block, known.context, known.shifted)


def find_facts(folder: Path) -> DiffusionFacts | None:
    """Return what is known of the model in a folder; None where it fills in no masks. Raises ModelError."""
    path = folder / "config.json"
    config = read_json(path)
    return facts_of(config, path) if is_diffusion(config) else None


def entries(base: Mapping[str, Any], kind: str, facts: DiffusionFacts) -> dict[str, Any]:
    """Return the config.json of a diffusion model of ours. base: its decoder's. kind: the decoder's type."""
    ours = {"model_type": KIND, BASE: kind, "architectures": ["BlockDiffusionLM"]}
    return {**base, **ours, _MASK: facts.mask_id, _BLOCK: facts.block_length}
