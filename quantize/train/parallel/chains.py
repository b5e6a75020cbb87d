"""Training rows of a parallel draft: the text itself, and chains of MASK tokens behind some of its tokens.

A parallel draft (PARD, arXiv 2504.18583) reads `MASK` in place of each token that it has not drafted yet, and
predicts all of them in one pass. Training all depths behind every token would take as many rows as there are
depths. Conditional drop keeps fewer chains the deeper they are, about three rows a token for six depths.

The rows of a text stand in one packed row. A row of depth 0 is a token of the text and sees the text before
it, as in any causal model. The MASK of depth d behind the token `anchor` stands at position anchor + d. It
sees the text up to the anchor, and the MASKs of lower depth behind the same anchor, which is what it sees at
run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

KEPT, FLOOR = 0.7, 0.2  # share of the chains that goes on at each further depth, and the least share of all
_LEAST_WEIGHT = 0.05
Ints = NDArray[np.int64]


def sample_chains(length: int, start: int, depth: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return anchor and depth [rows] of a text's training rows, by depth; depth 0 is the text itself.

    length: of the text, whose answer begins at `start`. depth: number of depths, the text's own included.

    A MASK exists where the token that it predicts is in the answer. A chain has all depths up to its last
    one. Depth d has the share max(KEPT ** d, FLOOR) of the answer's tokens, as far as chains go on.
    """
    anchors = [np.arange(length)]
    pool = np.arange(max(start - 1, 1), length - 1)  # positions whose next token is in the answer
    for d in range(1, depth):
        count = min(len(pool), round((length - start) * max(KEPT**d, FLOOR)))
        kept = np.sort(rng.choice(pool, count, replace=False)) if count else pool[:0]
        anchors.append(kept - d)
        pool = kept[kept + 2 < length] + 1
    return np.concatenate(anchors), np.repeat(np.arange(depth), [len(found) for found in anchors])


def packed_sample(
    batch: Mapping[str, Tensor], depth: int, mask_token: int, seed: int, step: int
) -> PackedRows:
    """Return a batch with sampled chains. They depend on seed and step only, so that a run can be resumed."""
    rng = np.random.default_rng((seed, step))
    lengths, starts = (each.tolist() for each in extents(batch))
    rows = [sample_chains(n, start, depth, rng) for n, start in zip(lengths, starts, strict=True)]
    return pack(batch, rows, mask_token)


def packed_whole(batch: Mapping[str, Tensor], depth: int, mask_token: int) -> PackedRows:
    """Return a batch with whole chains behind every token of the answers."""
    lengths, starts = (each.tolist() for each in extents(batch))
    rows = [all_chains(n, start, depth) for n, start in zip(lengths, starts, strict=True)]
    return pack(batch, rows, mask_token)


def all_chains(length: int, start: int, depth: int) -> tuple[Ints, Ints]:
    """Return anchor and depth [rows] of the text, and of whole chains behind every token of the answer."""
    anchors = [np.arange(length)]
    anchors += [np.arange(start, max(start, length - 1 - d)) for d in range(1, depth)]
    return np.concatenate(anchors), np.repeat(np.arange(depth), [len(found) for found in anchors])


@dataclass(frozen=True)
class PackedRows:
    """Hold the rows of a batch of texts. Texts are padded on the right to the longest, T rows.

    ids, positions: [texts, T]; a MASK's id is the one given to `pack`. anchors, depths: the same.
    texts, places:  [predictions] the rows whose output predicts a token of an answer: the text, and the place
                    in its T rows.
    weights:        [predictions] weight of the prediction in the loss (PARD-2, arXiv 2605.08632): the
                    target's probability of the tokens that a chain skips, times the weight of the token
                    in the batch.
    facts:          [predictions] as in a batch (`batches.batch`): `columns` is the last token that was read,
                    the anchor. A token of the text that joins a cut head does so up to there.
    """

    ids: Tensor
    positions: Tensor
    anchors: Tensor
    depths: Tensor
    texts: Tensor
    places: Tensor
    weights: Tensor
    facts: Mapping[str, Tensor]

    @property
    def prediction_depths(self) -> Tensor:
        """Return [predictions] the depth of each prediction."""
        return self.depths[self.texts, self.places]

    def visible(self) -> Tensor:
        """Return [texts, T, T] whether a row attends to another. Only padding attends to padding."""
        anchor, depth = self.anchors, self.depths
        text = (depth == 0)[:, None, :] & (anchor[:, None, :] <= anchor[:, :, None])
        chain = (anchor[:, None, :] == anchor[:, :, None]) & (depth[:, None, :] <= depth[:, :, None])
        return text | chain


def pack(batch: Mapping[str, Tensor], rows: Sequence[tuple[Ints, Ints]], mask_token: int) -> PackedRows:
    """Return the rows of a batch (`batches.batch`). rows: anchor and depth of the rows of each text."""
    where = batch["ids"].device
    lengths, starts = extents(batch)
    firsts = np.concatenate([[0], np.cumsum(lengths - starts)])  # of each text's answer, in all answers
    widest = max(len(anchor) for anchor, _ in rows)
    shape = (len(rows), widest)
    # Each row of padding has an anchor of its own, behind all tokens.
    anchors = np.broadcast_to(np.arange(widest) + batch["ids"].shape[1], shape).copy()
    depths, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    ids = np.zeros(shape, dtype=np.int64)
    tokens = batch["ids"].cpu().numpy()
    logs = _log_probabilities(batch)
    texts, places, answers, weights = [], [], [], []
    for i, (anchor, depth) in enumerate(rows):
        n = len(anchor)
        anchors[i, :n], depths[i, :n], positions[i, :n] = anchor, depth, anchor + depth
        ids[i, :n] = np.where(depth == 0, tokens[i, anchor], mask_token)
        predicted = anchor + depth + 1
        place = np.flatnonzero((predicted >= starts[i]) & (predicted < lengths[i]))
        texts.append(np.full(len(place), i))
        places.append(place)
        answers.append(firsts[i] + predicted[place] - starts[i])
        # Sum of the logs of all tokens up to a position; those of the prompt count as certain.
        so_far = np.concatenate([np.zeros(starts[i]), np.cumsum(logs[firsts[i] : firsts[i + 1]])])
        skipped = so_far[(anchor + depth)[place]] - so_far[anchor[place]]
        weights.append(np.clip(np.exp(skipped), _LEAST_WEIGHT, 1.0))

    def joined(arrays: Sequence[NDArray[Any]], dtype: type) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(dtype)).to(where)

    text, place, answer = (joined(arrays, np.int64) for arrays in (texts, places, answers))
    packed_anchors = torch.from_numpy(anchors).to(where)
    facts = {name: batch[name] for name in ("ids", "mask", "hidden") if name in batch}
    facts |= {"rows": text, "columns": packed_anchors[text, place]}
    facts |= {name: batch[name][answer] for name in ("answer", "top_ids", "top_probs")}
    weight = joined(weights, np.float32)
    if "weights" in batch:
        weight = weight * batch["weights"][answer]
    return PackedRows(
        torch.from_numpy(ids).to(where), torch.from_numpy(positions).to(where), packed_anchors,
        torch.from_numpy(depths).to(where), text, place, weight, facts,
    )  # fmt: skip


def extents(batch: Mapping[str, Tensor]) -> tuple[Ints, Ints]:
    """Return [texts] the length of each text, and where its answer begins."""
    lengths = batch["mask"].sum(dim=1).cpu().numpy()
    answers = np.bincount(batch["rows"].cpu().numpy(), minlength=len(lengths))
    return lengths, lengths - answers


def _log_probabilities(batch: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """Return [answer tokens] the log of the target's probability of each token; tiny if not listed."""
    listed = batch["top_ids"] == batch["answer"][:, None]
    chance = torch.where(listed, batch["top_probs"], 0.0).sum(dim=1)
    found: NDArray[np.float64] = np.log(np.maximum(chance.double().cpu().numpy(), 1e-9))
    return found
