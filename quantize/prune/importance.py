"""What each layer of a draft is worth, by every measure of `depth`: to look at before anything is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from specport.quantize.inputs import Origin
from specport.quantize.prune import depth
from specport.quantize.prune.probe import Probe
from specport.quantize.text.prompts import CHOOSING

from specport.progress import Progress, part
from specport.text import builtin_prompts

BLOCKS = (1, 2, 4, 6, 8, 12, 16)
NUM_TOKENS = 64


@dataclass(frozen=True)
class Block:
    """`size` consecutive layers from `first`.

    angle: angular distance over them, in half turns. agreement: with the target, without them.
    """

    size: int
    first: int
    angle: float
    agreement: float


@dataclass(frozen=True)
class Importance:
    """agreement: share of the target's tokens that the whole draft proposes. num_tokens: looked at.

    angles, influences: [layers] angular distance and block influence of each layer.
    agreements: [layers] without it. blocks: of each size the one of least angular distance.
    """

    agreement: float
    num_tokens: int
    angles: tuple[float, ...]
    influences: tuple[float, ...]
    agreements: tuple[float, ...]
    blocks: tuple[Block, ...]


def look(origin: Origin, prompts: Sequence[str], progress: Progress) -> Importance:
    """prompts: the user's own; () = those that drafts are chosen by. The draft keeps its whole head."""
    bar = part(progress, 0.0, 0.2)
    written = builtin_prompts.write(
        origin.target.model, origin.tokenizer, prompts or CHOOSING, NUM_TOKENS, bar
    )
    profile = origin.loader.profile
    probe = Probe(origin.files.folder, profile.device, profile.draft)
    streams = np.concatenate([probe.streams(text) for text in written], axis=1)
    without = []
    for layer in range(probe.num_layers):
        progress(f"without layer {layer}", 0.2 + 0.6 * layer / probe.num_layers)
        without.append(probe.agreement(written, (layer,)))
    blocks = []
    sizes = [size for size in BLOCKS if size < probe.num_layers]
    for number, size in enumerate(sizes):
        progress(f"without {size} layers", 0.8 + 0.2 * number / len(sizes))
        gone = depth.by_block(streams, size)
        angle = float(depth.angular_distance(streams, size)[gone[0]])
        blocks.append(Block(size, gone[0], angle, probe.agreement(written, gone)))
    progress("done", 1.0)
    return Importance(
        probe.agreement(written),
        sum(len(text.answer) for text in written),
        tuple(depth.angular_distance(streams).tolist()),
        tuple(depth.block_influence(streams).tolist()),
        tuple(without),
        tuple(blocks),
    )
