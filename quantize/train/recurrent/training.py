"""Training of a recurrent draft head on its target's hidden states (Hydra, arXiv 2402.05109; ReDrafter).

The student starts from the target's states at a token of the text and is unrolled over the tokens that
follow. At each depth it learns the target's distribution (cross-entropy and divergence, `losses.py`).
Embeddings and language-model head are the target's and are not trained. Of the chains that were wrong only a
part goes on: at run time nothing behind a wrong token is ever accepted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.backends.torch.hidden_head import RecurrentCell
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import batches, trainer
from specport.quantize.train.losses import cross_entropies, divergences, picked
from specport.quantize.train.on_target import OnTarget
from specport.quantize.train.recurrent.recipe import Recipe

from specport.models.kinds.recurrent import SCALE, quantized
from specport.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

_CE = 0.1  # weight of the cross-entropy beside the divergence
_DEPTH_WEIGHT = 0.8  # of each depth's loss, relative to the depth before
_EXAMINED = 8000  # about so many tokens of held-out answers are drafted before and after the training
# Columns of a step's softmax: those of the likeliest tokens of the batch, and a sample of the rest.
_LIKELY, _SAMPLED = 8, 768


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    weights: by name, as `models.kinds.recurrent.read_weights` returns them.
    survival_before, survival: by depth, the share of chains on held-out text whose tokens up to this one are
             all the target's; `survival` with the weights rounded as they are stored.
    writes:  whether this process, of several that trained together, writes the head.
    """

    weights: Mapping[str, NDArray[Any]]
    survival_before: tuple[float, ...]
    survival: tuple[float, ...]
    losses: tuple[float, ...]
    num_tokens: int
    seconds: float
    writes: bool = True


class RecurrentStudent(OnTarget):
    """A recurrent cell with its target's embeddings and cut head. Called with a batch; returns loss and hits.

    table: [vocab, width] embeddings. head: [columns, width] rows of the head at the ids `columns`.
    """

    def __init__(
        self,
        cell: RecurrentCell,
        table: NDArray[np.floating[Any]],
        head: NDArray[np.floating[Any]],
        columns: Sequence[int],
        recipe: Recipe,
    ) -> None:
        super().__init__(table, head, columns)
        self.cell, self._recipe = cell, recipe

    def forward(self, batch: dict[str, Tensor], step: int = 0, num_steps: int = 1) -> tuple[Tensor, Tensor]:
        """Return loss and hits of the first depth. What goes on depends on seed and step only."""
        rng = torch.Generator().manual_seed(1_000_003 * self._recipe.seed + step)
        head, column, offsets = self._sampled(batch, rng)
        total, weights = torch.zeros((), device=batch["answer"].device), 0.0
        hits = torch.zeros((), dtype=torch.long, device=total.device)
        for depth, rows, logits in self._levels(batch, head, column, rng):
            log_q = torch.log_softmax(logits.float() + offsets, dim=-1)
            answer, top = column[batch["answer"][rows]], column[batch["top_ids"][rows]]
            logs = picked(log_q, torch.cat([answer[:, None], top], dim=1))
            losses, _ = cross_entropies(logs[:, 0])
            probs = batch["top_probs"][rows]
            losses = _CE * losses + divergences(logs[:, 1:], probs, self._recipe.loss)
            weight = _DEPTH_WEIGHT ** (depth - 1)
            total = total + weight * losses.sum()
            weights += weight * len(rows)
            if depth == 1:
                hits += (log_q.argmax(dim=-1) == answer).sum()
        return total / max(weights, 1.0), hits

    def survival(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return by depth the chains whose tokens were all right, and the chains that are so deep."""
        depth = self.cell.shape.depth
        right = torch.zeros(depth, dtype=torch.long)
        count = torch.zeros_like(right)
        alive = torch.ones(len(batch["answer"]), dtype=torch.bool)
        for level, rows, logits in self._levels(batch, self.head, self.column, None):
            hit = logits.argmax(dim=-1) == self.column[batch["answer"][rows]]
            anchors = rows - level
            alive[anchors] &= hit
            right[level - 1], count[level - 1] = alive[anchors].sum(), len(rows)
        return right, count

    def _sampled(self, batch: dict[str, Tensor], rng: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the part of the head that a step's softmax runs over.

        Rows [some, width], the column of each id there (-1 = none), and [some] what is added to the logits: a
        sampled column stands for the others that might have been in its place.
        """
        ids = torch.cat([batch["answer"], batch["top_ids"][:, :_LIKELY].flatten()])
        wanted = torch.zeros(len(self.head), dtype=torch.bool, device=ids.device)
        columns = self.column[ids]
        wanted[columns[columns >= 0]] = True
        rest = torch.nonzero(~wanted)[:, 0]
        drawn = rest[torch.randperm(len(rest), generator=rng).to(rest.device)[:_SAMPLED]]
        chosen = torch.cat([torch.nonzero(wanted)[:, 0], drawn])
        place = torch.full((len(self.head) + 1,), -1, device=ids.device)  # the last is that of column -1
        place[chosen] = torch.arange(len(chosen), device=ids.device)
        offsets = torch.zeros(len(chosen), device=ids.device)
        if len(drawn):
            offsets[-len(drawn) :] = math.log(len(rest) / len(drawn))
        return self.head[chosen], place[self.column], offsets

    def _levels(self, batch: dict[str, Tensor], head: Tensor, column: Tensor, rng: Any) -> Any:
        """Yield for each depth its number, the rows that are predicted, and their logits [rows, columns].

        A row is a token of the answers; the chain of depth d that predicts it began d rows before, at the
        hidden states of that row, and was fed the tokens of the rows in between.

        head, column: rows of the head, and the column of each id. rng: None = all chains go on, else chains
        that were wrong are dropped at random.
        """
        answer = batch["answer"]
        ends = torch.cat([batch["rows"][1:] != batch["rows"][:-1], batch["rows"].new_ones(1).bool()])
        rows = torch.arange(len(answer), device=answer.device)
        states = self.cell.begin(batch["hidden"].chunk(len(self.cell.shape.layers), dim=1))
        for depth in range(1, self.cell.shape.depth + 1):
            left = ~ends[rows]  # the answer has a token behind that one
            kept = torch.nonzero(left)[:, 0]
            rows, states = rows[kept], states.index_select(0, kept)
            if not len(rows):
                return
            embedded = self.table[answer[rows]]
            states = self.cell.step(states, embedded)
            rows = rows + 1
            read = self.cell.out(states)
            logits = read.to(head.dtype) @ head.T
            yield depth, rows, logits
            if rng is not None:
                right = logits.detach().argmax(dim=-1) == column[answer[rows]]
                chance = torch.rand(len(rows), generator=rng).to(rows.device)
                kept = torch.nonzero(right | (chance < self._recipe.wrong))[:, 0]
                rows, states = rows[kept], states.index_select(0, kept)


def train_head(
    cell: RecurrentCell,
    table: NDArray[Any],
    head: NDArray[Any],
    columns: Sequence[int],
    texts: Sequence[Dialogue],
    held_out: Sequence[Dialogue],
    recipe: Recipe,
    work: Path,
    progress: Progress,
    start: Callable[[], None] | None = None,
) -> Trained:
    """Train a cell in place, and return its weights as they are stored.

    table, head, columns: as for `RecurrentStudent`. texts, held_out: with hidden states.
    work: folder of the checkpoint; a checkpoint of another recipe, shape or text is ignored.
    start: gives the cell its first values, unless a checkpoint has them (`trainer.train`).
    Raises InvalidInput for too little text, and ModelError when a checkpoint cannot be read or written.
    """
    trainer.check_texts(texts, held_out)
    student = RecurrentStudent(cell, table, head, columns, recipe)
    facts = (
        json.dumps([asdict(recipe), asdict(cell.shape)], sort_keys=True).encode(),
        np.asarray(columns, dtype=np.int64).tobytes(),
    )
    run, writes = trainer.train(
        student, texts, recipe, trainer.identity(texts, student, *facts), work / trainer.CHECKPOINT,
        lambda student, device: _survival(student, held_out, recipe.batch_tokens, device),
        "training the head", progress, start,
    )  # fmt: skip
    weights = stored(cell)
    survival = _survival(student, held_out, recipe.batch_tokens, student.head.device)
    return Trained(
        weights, tuple(run.before), tuple(survival), tuple(run.losses), run.num_tokens, run.seconds, writes
    )


def stored(cell: RecurrentCell) -> dict[str, NDArray[Any]]:
    """Return a cell's weights by name as they are stored, and round the cell's own to them."""
    found: dict[str, NDArray[Any]] = {}
    with torch.no_grad():
        for name in cell.shape.matrices:
            values, scale = quantized(cell.weight(name).detach().float().cpu().numpy())
            found |= {name: values, name + SCALE: scale}
            cell.weight(name).copy_(torch.from_numpy(values.astype(np.float32) * scale.astype(np.float32)))
        for name in cell.shape.vectors:
            found[name] = cell.weight(name).detach().float().cpu().numpy()
    return found


def _survival(student: Any, texts: Sequence[Dialogue], batch_tokens: int, device: Any) -> list[float]:
    student = getattr(student, "module", student)  # unwrap it where several processes train
    total = np.cumsum([len(text.tokens) - text.start for text in texts])
    texts = texts[: 1 + int(np.searchsorted(total, _EXAMINED))]
    depth = student.cell.shape.depth
    right, count = torch.zeros(depth, dtype=torch.long), torch.zeros(depth, dtype=torch.long)
    with torch.no_grad():
        for groups in batches.plan(texts, 1.0, batch_tokens, seed=0):
            batch = batches.batch([texts[i] for i in groups[0]], device)
            found = student.survival(batch)
            right, count = right + found[0], count + found[1]
    return [round(float(share), 4) for share in right / count.clamp(min=1)]
