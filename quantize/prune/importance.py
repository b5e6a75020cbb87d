"""Report of what each layer of a draft is worth, by every measure of `depth`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from specport.quantize.inputs import Inputs
from specport.quantize.prune import depth
from specport.quantize.prune.probe import Probe
from specport.quantize.text.prompts import CHOOSING

from specport.calibration import target_text
from specport.progress import Progress, part

BLOCKS = (1, 2, 4, 6, 8, 12, 16)
NUM_TOKENS = 64


@dataclass(frozen=True)
class Block:
    """A block of `size` consecutive layers from layer `first`.

    angle: angular distance over the block, in half turns. agreement: with the target, without the block.
    """

    size: int
    first: int
    angle: float
    agreement: float


@dataclass(frozen=True)
class Importance:
    """Measures of a draft's layers.

    agreement:  share of the target's tokens that the whole draft proposes, over `num_tokens` tokens.
    angles, influences: [layers] angular distance and block influence of each layer.
    agreements: [layers] without each layer.
    blocks:     for each size the block of least angular distance.
    """

    agreement: float
    num_tokens: int
    angles: tuple[float, ...]
    influences: tuple[float, ...]
    agreements: tuple[float, ...]
    blocks: tuple[Block, ...]


def measure_layers(inputs: Inputs, prompts: Sequence[str], progress: Progress) -> Importance:
    """Measure what each layer of the source model is worth as a draft of the target, with its whole head.

    prompts: the user's own; () = the prompts that drafts are chosen by.
    """
    bar = part(progress, 0.0, 0.2)
    written = target_text.write(inputs.target.model, inputs.tokenizer, prompts or CHOOSING, NUM_TOKENS, bar)
    profile = inputs.loader.profile.fitted(inputs.source_files.folder)
    probe = Probe(inputs.source_files.folder, profile.device, profile.draft)
    streams = np.concatenate([probe.streams(text) for text in written], axis=1)
    without = []
    for layer in range(probe.num_layers):
        progress(f"without layer {layer}", 0.2 + 0.6 * layer / probe.num_layers)
        without.append(probe.agreement(written, (layer,)))
    blocks = []
    sizes = [size for size in BLOCKS if size < probe.num_layers]
    for number, size in enumerate(sizes):
        progress(f"without {size} layers", 0.8 + 0.2 * number / len(sizes))
        dropped = depth.by_block(streams, size)
        angle = float(depth.angular_distance(streams, size)[dropped[0]])
        blocks.append(Block(size, dropped[0], angle, probe.agreement(written, dropped)))
    progress("done", 1.0)
    return Importance(
        probe.agreement(written),
        sum(len(text.answer) for text in written),
        tuple(depth.angular_distance(streams).tolist()),
        tuple(depth.block_influence(streams).tolist()),
        tuple(without),
        tuple(blocks),
    )
