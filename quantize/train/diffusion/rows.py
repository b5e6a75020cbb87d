"""Training rows of a block-diffusion model: a clean copy of a text, and two noised copies of its answer.

All copies of a text stand in one row, with the attention mask of BD3-LM (arXiv 2503.09573) and SDAR: the
clean copy is block-causal, and a block of a noised copy sees itself and the clean blocks before it. So one
pass trains all blocks of a text.

Of a block's n tokens, m are masked in the first noised copy, and the other n - m in the second: each token is
predicted once a pass (complementary masks, as in LLaDA 2). All m from 0 to n are alike, which is what a
share of masks t from 0 to 1 comes to for whole tokens. A prediction weighs 1 / t = n / m, so that the mean is
a bound of the negative log-likelihood.

Blocks need not begin at multiples of their length: their border is drawn for each text, so that a block can
also begin behind a prompt of any length, or behind a block that a verifier cut short (SimSD).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.quantize.train.parallel.chains import extents

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]
_COPIES = 2


@dataclass(frozen=True)
class Text:
    """Hold a text whose blocks are whole, and what is masked of it.

    tokens: [n] ids. blocks: [n] number of each token's block; the answer's begin at 0, the prompt's are less.
    noised: first token of block 0. masked: [2, n - noised] whether a token is masked in each noised copy.
    real:   [n - noised] False for what was added behind the end of the text.
    """

    tokens: Ints
    blocks: Ints
    noised: int
    masked: NDArray[np.bool_]
    real: NDArray[np.bool_]


def noise(tokens: Ints, start: int, block: int, ends: Collection[int], rng: np.random.Generator) -> Text:
    """Return a text with its blocks and masks.

    start: first token of the answer, which has `block` tokens or more. ends: ids that end a text.
    An answer that has ended goes on with its last token up to the end of the block: a model has to fill a
    block with something. What is left of another answer is dropped.
    """
    before = min(int(rng.integers(block)), start)  # tokens of the prompt in the answer's first block
    noised = start - before
    length = len(tokens)
    missing = -(length - noised) % block
    if missing and int(tokens[-1]) in ends:
        tokens = np.concatenate([tokens, np.full(missing, tokens[-1])])
    elif missing:
        tokens = tokens[: length - (block - missing)]
    blocks = np.floor_divide(np.arange(len(tokens)) - noised, block)
    masked = np.zeros((_COPIES, len(tokens) - noised), dtype=np.bool_)
    for first in range(0, len(tokens) - noised, block):
        maskable = np.arange(max(first, before), first + block)
        order = rng.permutation(maskable)
        count = int(rng.integers(len(maskable) + 1))
        masked[0, order[:count]], masked[1, order[count:]] = True, True
    real = np.arange(noised, len(tokens)) < length
    return Text(tokens.astype(np.int64), blocks, noised, masked, real)


@dataclass(frozen=True)
class Packed:
    """Hold the rows of a batch, padded on the right to the longest, T tokens.

    ids, positions, blocks, copies: [texts, T]; copy 0 is the clean one, -1 is padding.
    texts, places: [predictions] where masks stand. answers: [predictions] the tokens there.
    weights:       [predictions] 1 / share of masks in the block.
    counts:        [predictions] number of masks in the block.
    real:          [predictions] False for tokens behind the end of the text.
    """

    ids: Tensor
    positions: Tensor
    blocks: Tensor
    copies: Tensor
    texts: Tensor
    places: Tensor
    answers: Tensor
    weights: Tensor
    counts: Tensor
    real: Tensor

    def visible(self) -> Tensor:
        """Return [texts, T, T] whether a token attends to another. Only padding attends to padding."""
        query, key = self.blocks[:, :, None], self.blocks[:, None, :]
        own, other = self.copies[:, :, None], self.copies[:, None, :]
        within = (own == other) & (query == key)
        return within | ((own >= 0) & (other == 0) & (key < query))


def pack(texts: Sequence[Text], mask_token: int, device: Any) -> Packed:
    """Return the rows of these texts."""
    longest = max(len(text.tokens) + _COPIES * (len(text.tokens) - text.noised) for text in texts)
    ids, positions, blocks = (np.zeros((len(texts), longest), dtype=np.int64) for _ in range(3))
    copies = np.full((len(texts), longest), -1, dtype=np.int64)
    found: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("texts", "places", "answers", "weights", "counts", "real")
    }
    for i, text in enumerate(texts):
        n, size = len(text.tokens), len(text.tokens) - text.noised
        ids[i, :n], positions[i, :n], blocks[i, :n], copies[i, :n] = text.tokens, np.arange(n), text.blocks, 0
        maskable = np.bincount(text.blocks[text.noised :], weights=text.masked.any(axis=0))
        for copy, masked in enumerate(text.masked):
            first = n + copy * size
            where = slice(first, first + size)
            own = text.blocks[text.noised :]
            ids[i, where] = np.where(masked, mask_token, text.tokens[text.noised :])
            positions[i, where] = np.arange(text.noised, n)
            blocks[i, where], copies[i, where] = own, copy + 1
            at = np.flatnonzero(masked)
            counts = np.bincount(own, weights=masked)[own[at]]
            found["texts"].append(np.full(len(at), i))
            found["places"].append(first + at)
            found["answers"].append(text.tokens[text.noised + at])
            found["weights"].append(maskable[own[at]] / counts)
            found["counts"].append(counts.astype(np.int64))
            found["real"].append(text.real[at])

    def there(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    joined["weights"] = joined["weights"].astype(np.float32)
    return Packed(
        there(ids), there(positions), there(blocks), there(copies),
        **{name: there(array) for name, array in joined.items()},
    )  # fmt: skip


def noised(
    batch: Mapping[str, Tensor], block: int, ends: Collection[int], rng: np.random.Generator
) -> list[Text]:
    """Return the texts of a batch (`batches.batch`) with masks."""
    tokens = batch["ids"].cpu().numpy()
    shapes = zip(*extents(batch), strict=True)
    return [
        noise(tokens[i, :length], int(start), block, ends, rng) for i, (length, start) in enumerate(shapes)
    ]
