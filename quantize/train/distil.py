"""Distillation of a pruned draft: it learns the target's distribution on text that the target wrote.

Embeddings and head are not trained. The softmax runs over the ids that the draft's head keeps. `trainer.py`
has the training loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import batches, rounding, trainer
from specport.quantize.train.kept_weights import START, KeptWeights
from specport.quantize.train.log_probabilities import HeadPart, log_probabilities
from specport.quantize.train.losses import columns_of, token_loss
from specport.quantize.train.pace import Pace
from specport.quantize.train.recipe import Recipe

from specport.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Distillation:
    """Agreement with the target on held-out text before and after training, and the losses of the steps.

    writes:  whether this process, of several that trained together, writes the model.
    trained: False where the model is unchanged: training lowered the agreement, or there was none.
    """

    before: float
    after: float
    losses: tuple[float, ...]
    num_tokens: int
    seconds: float
    writes: bool = True
    trained: bool = True


class Student(torch.nn.Module):  # type: ignore[misc]
    """A decoder with the head that the draft will have: the kept rows, and rows of tokens in the text so far.

    Called with a batch, it returns loss and hits. At run time a cut head has the tokens of the text as well
    (`drafters/model/context_head.py`). A student that never had them in training could learn any logits for
    them.
    """

    def __init__(self, model: Any, head: Sequence[int], loss: str) -> None:
        super().__init__()
        self.body = model.model
        weight = model.get_output_embeddings().weight.detach()
        kept = torch.as_tensor(list(head))
        self.register_buffer("head", weight[kept].clone(), persistent=False)
        # No buffer: processes that train together would send it to each other in every step.
        self._whole = weight
        column = torch.full((weight.shape[0],), -1)
        column[kept] = torch.arange(len(kept))
        self.register_buffer("column", column, persistent=False)
        self._loss = loss

    def forward(self, batch: dict[str, Tensor], step: int = 0, num_steps: int = 1) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the answers' tokens, and how many of them the student would propose."""
        hidden = self.body(
            input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False
        ).last_hidden_state
        outputs = hidden[batch["rows"], batch["columns"]]
        more, column, unseen = self._context(batch)
        logs, best = log_probabilities(outputs, self._parts(more, unseen), columns_of(batch, column))
        return token_loss(logs, best, batch, self._loss)

    def _parts(self, more: Tensor, unseen: Tensor) -> list[HeadPart]:
        """Return the head and what `_context` adds to it."""
        return [HeadPart(self.head), HeadPart(more, unseen)]

    def _context(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what joins the head for the tokens of these texts.

        Rows [more, width] of ids that the head lacks, the column [vocab] of every id, and [answer tokens,
        more] whether the text does not have the id yet.
        """
        ids, mask = batch["ids"], batch["mask"].bool()
        more = torch.unique(ids[mask])
        more = more[self.column[more] < 0]
        column = self.column.clone()
        column[more] = len(self.head) + torch.arange(len(more), device=more.device)
        # Place of the first occurrence of each id in each text; the text's length where it does not occur.
        number = column[ids] - len(self.head)
        number = torch.where(mask & (number >= 0), number, len(more))  # one more column for all other tokens
        length = ids.shape[1]
        first = torch.full((len(ids), len(more) + 1), length, device=ids.device)
        places = torch.arange(length, device=ids.device).expand_as(ids)
        first.scatter_reduce_(1, number, places, "amin")
        unseen = first[batch["rows"], : len(more)] > batch["columns"][:, None]
        rows = self._whole[more.to(self._whole.device)].to(ids.device, self.head.dtype)
        return rows, column, unseen


def distil(
    model: Any,
    head: Sequence[int],
    texts: Sequence[Dialogue],
    held_out: Sequence[Dialogue],
    recipe: Recipe,
    work: Path,
    progress: Progress,
) -> Distillation:
    """Train `model` in place; restore it where training lowered the agreement on `held_out`.

    head: token ids that the draft's head will keep.
    work: folder of the checkpoint; a checkpoint of another recipe, model or text is ignored.
    Raises InvalidInput for too little text, and ModelError when a checkpoint cannot be read or written.
    """
    trainer.check_texts(texts, held_out)
    with rounding.rounded(model, recipe.precision):
        student = Student(model, head, recipe.loss).float()
        facts = (
            json.dumps(asdict(recipe), sort_keys=True).encode(),
            np.asarray(head, dtype=np.int64).tobytes(),
        )
        run, writes, better = train_student(
            student, texts, recipe, facts, work,
            lambda student, device: agreement(student, held_out, recipe.batch_tokens, device),
            float, "distilling", progress,
        )  # fmt: skip
        after = run.after if better else run.before
        return Distillation(run.before, after, tuple(run.losses), run.num_tokens, run.seconds, writes, better)


def train_student(
    student: Any,
    texts: Sequence[Dialogue],
    recipe: Pace,
    facts: Sequence[bytes],
    work: Path,
    examine: Callable[[Any, Any], Any],
    score: Callable[[Any], float],
    stage: str,
    progress: Progress,
    frozen: Sequence[str] = ("embed_tokens",),
) -> tuple[trainer.Run, bool, bool]:
    """Train all of a student but its embeddings, in place; undo that where it did not raise the score.

    facts:   that decide how it is trained; a checkpoint of others is ignored.
    score:   of what `examine` returns; the higher, the better.
    frozen:  parts of the names of parameters that are not trained.
    Other arguments and errors as for `trainer.train`. Returns the run, whether this process writes the model,
    and whether the student was changed.
    """
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    start = KeptWeights(trained, work / START)
    run, writes = trainer.train(
        student, texts, recipe, trainer.identity(texts, student, *facts), work / trainer.CHECKPOINT,
        examine, stage, progress,
    )  # fmt: skip
    better = score(run.after) > score(run.before)
    if not better:
        start.restore()
    return run, writes, better


def agreement(student: Any, texts: Sequence[Dialogue], batch_tokens: int, device: Any) -> float:
    """Return the share of the answers' tokens that the student would propose."""
    hits = count = 0
    student.eval()
    with torch.no_grad():
        for groups in batches.plan(texts, 1.0, batch_tokens, seed=0):
            chosen = [texts[i] for i in groups[0]]
            hits += int(student(batches.batch(chosen, device))[1])
            count += sum(len(text.tokens) - text.start for text in chosen)
    student.train()
    return hits / count
