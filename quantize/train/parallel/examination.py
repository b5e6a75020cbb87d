"""How well a parallel student drafts behind every token of held-out text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import batches, trainer
from specport.quantize.train.parallel import temperature
from specport.quantize.train.parallel.chains import extents, packed_whole
from specport.quantize.train.parallel.temperature import GRID

from specport.models.kinds.bigrams import Bigrams

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]
SURVIVAL = "survival"
RANKED = "ranked"  # the part of an examination with tokens ranked by bigrams


class Predictions(NamedTuple):
    """Some predictions of a student.

    log_q:   [predictions, columns] log-probabilities; whoever gets them may overwrite them.
    column:  [vocab] the column of each id; -1 = none.
    tokens:  [predictions] the token that the draft stands behind, counted over all texts.
    depths:  [predictions] of the draft, from 0 on.
    befores, answers: [predictions] ids: the text's token before the predicted one, and the target's.
    """

    log_q: Tensor
    column: Tensor
    tokens: Ints
    depths: Ints
    befores: Ints
    answers: Ints

    def rank(self, bigrams: Bigrams) -> None:
        """Raise the log-probabilities of depth 1 and deeper by the token before, in place.

        A draft that is accepted so far has the target's token there. At depth 0 the student has read it.
        """
        column = self.column.cpu().numpy()
        for i in np.flatnonzero(self.depths):
            ids, gains = bigrams.behind(int(self.befores[i]))
            ids, gains = ids[ids < len(column)], gains[ids < len(column)]
            places = column[ids]
            places, gains = places[places >= 0], gains[places >= 0]
            at = torch.from_numpy(places).to(self.log_q.device)
            self.log_q[i, at] += torch.from_numpy(gains).to(self.log_q)


def predictions(
    student: Any, texts: Sequence[Dialogue], depth: int, batch_tokens: int, device: Any
) -> Iterator[Predictions]:
    """Yield what a student predicts in whole chains behind every token of the answers."""
    first = 0
    for groups in batches.plan(texts, 1.0, batch_tokens, seed=0):
        batch = batches.batch([texts[i] for i in groups[0]], device)
        lengths, _ = extents(batch)
        packed = packed_whole(batch, depth, student.mask_token)
        firsts = torch.from_numpy(first + np.cumsum(lengths) - lengths).to(packed.texts.device)
        tokens = (firsts[packed.texts] + packed.facts["columns"]).cpu().numpy()
        depths = packed.prediction_depths.cpu().numpy()
        befores = batch["ids"][packed.texts, packed.positions[packed.texts, packed.places]].cpu().numpy()
        answers = packed.facts["answer"].cpu().numpy()
        for log_q, where, column in student.pieces(student.outputs(packed), packed):
            arrays = (array[where] for array in (tokens, depths, befores, answers))
            yield Predictions(log_q, column, *arrays)
        first += int(lengths.sum())


def examine(
    student: Any, texts: Sequence[Dialogue], depth: int, batch_tokens: int, device: Any,
    bigrams: Bigrams | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return survival and fitted temperatures by depth, ready for JSON.

    bigrams: that tokens are ranked by in addition; the result of that is under RANKED.
    """
    student = getattr(student, "module", student)  # unwrap it where several processes train
    shape = (1 if bigrams is None else 2, sum(len(text.tokens) for text in texts), depth)
    confidences = np.full((*shape, len(GRID)), np.nan)  # nan where a text ends before
    hits = np.zeros(shape, dtype=np.bool_)
    student.eval()
    with torch.no_grad(), trainer.autocast(device):
        for found in predictions(student, texts, depth, batch_tokens, device):
            answer = found.column[torch.from_numpy(found.answers).to(found.column.device)]
            ways = [found.log_q]
            if bigrams is not None:
                ways = [found.log_q.clone(), found.log_q]
                found.rank(bigrams)
            for number, logs in enumerate(ways):
                at = number, found.tokens, found.depths
                hits[at] = (logs.argmax(dim=-1) == answer).cpu().numpy()
                confidences[at] = temperature.confidences(logs).cpu().numpy()
    student.train()
    plain, *ranked = map(_facts, confidences, hits)
    return {**plain, RANKED: ranked[0]} if ranked else plain


def _facts(confidences: NDArray[np.float64], hits: NDArray[np.bool_]) -> dict[str, Any]:
    """Return survival and temperatures.

    confidences: [tokens, depth, GRID]. hits: [tokens, depth] whether the draft is the target's token.
    """
    there = ~np.isnan(confidences[:, :, 0])
    accepted = np.logical_and.accumulate(hits, axis=1)
    survival = accepted.sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    temperatures = temperature.fit(confidences, accepted)
    return {SURVIVAL: [round(float(share), 4) for share in survival], "temperatures": [*temperatures]}
