"""Heals a pruned draft: it learns the target's distribution on text that the target wrote.

Embeddings and head stay as they are; the softmax runs over the tokens that the draft's head keeps. How it is
trained, `trainer.py` says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specport.quantize.text.teacher import Dialogue
from specport.quantize.train import batches, rounding, trainer

from specport.errors import InvalidInput
from specport.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = ("kl", "ce", "tv")


@dataclass(frozen=True)
class Recipe:
    """loss: "kl" (to the target's top probabilities), "ce" (its tokens) or "tv" (total variation, which is
    what sampled acceptance depends on; LK losses, arXiv 2602.23881).

    batch_tokens: prompt and answer tokens of a step; epochs: times that each text is read; 0 =
    no training. precision: what the draft will be stored in; weights that will be INT4 are rounded as it
    trains (`rounding.py`).
    """

    loss: str = "kl"
    epochs: float = 3.0
    learning_rate: float = 2e-5
    batch_tokens: int = 1024
    seed: int = 0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InvalidInput(f"unknown loss {self.loss!r}", f"choose one of {', '.join(LOSSES)}")
        if self.learning_rate <= 0 or self.batch_tokens < 1:
            raise InvalidInput("learning rate and batch tokens must be greater than 0")
        if not 0 <= self.epochs < math.inf:
            raise InvalidInput(f"epochs is {self.epochs}; it must be 0 or more")


@dataclass(frozen=True)
class Healed:
    """Agreement with the target on held-out text before and after, and the loss along the way.

    writes:  whether it is this process, of several that trained together, that writes the model.
    trained: False where the model is as it was before, since training made it agree less, or there was none.
    """

    before: float
    after: float
    losses: tuple[float, ...]
    num_tokens: int
    seconds: float
    writes: bool = True
    trained: bool = True


class Student(torch.nn.Module):  # type: ignore[misc]
    """A decoder and the head it will have: some rows, and those of the tokens that a text has had so far.

    Gives loss and hits of a batch. A cut head takes up the text's tokens at run time
    (`drafters/model/context_head.py`); a student that never saw them there would learn to give them any
    logits.
    """

    def __init__(self, model: Any, head: Sequence[int], loss: str) -> None:
        super().__init__()
        self.body = model.model
        weight = model.get_output_embeddings().weight.detach()
        kept = torch.as_tensor(list(head))
        self.register_buffer("head", weight[kept].clone(), persistent=False)
        # No buffer: processes that train together would send all of it to each other every step.
        self._whole = weight
        column = torch.full((weight.shape[0],), -1)
        column[kept] = torch.arange(len(kept))
        self.register_buffer("column", column, persistent=False)
        self._loss = loss

    def forward(self, batch: dict[str, Tensor], step: int = 0, num_steps: int = 1) -> tuple[Tensor, Tensor]:
        """Mean loss over the answers' tokens, and how many of them the student would propose."""
        hidden = self.body(
            input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False
        ).last_hidden_state
        wanted = hidden[batch["rows"], batch["columns"]]
        more, column, unseen = self._context(batch)
        added = (wanted @ more.T.to(hidden.dtype)).masked_fill(unseen, -math.inf)
        logits = torch.cat([wanted @ self.head.T.to(hidden.dtype), added], dim=1)
        return token_loss(logits, batch, column, self._loss)

    def _context(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows for tokens that the head lacks; the column of every id; where a text does not have them yet.

        [more, width], [vocab], [answer tokens, more].
        """
        ids, mask = batch["ids"], batch["mask"].bool()
        more = torch.unique(ids[mask])
        more = more[self.column[more] < 0]
        column = self.column.clone()
        column[more] = len(self.head) + torch.arange(len(more), device=more.device)
        # Of each text and token, the place where it comes first; behind the end where it does not come.
        number = column[ids] - len(self.head)
        number = torch.where(mask & (number >= 0), number, len(more))  # one more column, for all others
        length = ids.shape[1]
        first = torch.full((len(ids), len(more) + 1), length, device=ids.device)
        places = torch.arange(length, device=ids.device).expand_as(ids)
        first.scatter_reduce_(1, number, places, "amin")
        unseen = first[batch["rows"], : len(more)] > batch["columns"][:, None]
        rows = self._whole[more.to(self._whole.device)].to(ids.device, self.head.dtype)
        return rows, column, unseen


def token_loss(logits: Tensor, batch: dict[str, Tensor], column: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Mean loss over the answers' tokens, and how many of them have the largest logit.

    logits: [answer tokens, columns], -inf where a token cannot be proposed; column: [vocab] the column of an
    id, -1 = none; loss: as in `Recipe`.
    """
    log_q = torch.log_softmax(logits.float(), dim=-1)
    answer = column[batch["answer"]]
    hits = (log_q.argmax(dim=-1) == answer).sum()
    if loss == "ce":
        found = log_q.gather(1, answer.clamp(min=0)[:, None])[:, 0]
        possible = (answer >= 0) & found.isfinite()
        return -found[possible].mean(), hits
    ids = column[batch["top_ids"]]
    log_top = torch.where(ids >= 0, log_q.gather(1, ids.clamp(min=0)), -math.inf)
    p = torch.where(log_top.isfinite(), batch["top_probs"], 0.0)
    # What lies outside the listed tokens counts as one more token.
    rest_p = (1.0 - p.sum(dim=1)).clamp(min=0.0)
    rest_q = (1.0 - log_top.exp().sum(dim=1)).clamp(min=1e-7)
    if loss == "tv":
        return 0.5 * ((p - log_top.exp()).abs().sum(dim=1) + (rest_p - rest_q).abs()).mean(), hits
    finite = torch.where(log_top.isfinite(), log_top, 0.0)  # p is 0 there
    own = torch.where(p > 0, p * (p.clamp(min=1e-12).log() - finite), 0.0).sum(dim=1)
    other = torch.where(rest_p > 0, rest_p * (rest_p.clamp(min=1e-12).log() - rest_q.log()), 0.0)
    return (own + other).mean(), hits


def check_texts(texts: Sequence[Dialogue], held_out: Sequence[Dialogue]) -> None:
    """Raises InvalidInput where there is nothing to learn from or nothing to measure by."""
    if not texts or not held_out:
        raise InvalidInput("there is too little text to learn from", "let the target write more")


def distil(
    model: Any,
    head: Sequence[int],
    texts: Sequence[Dialogue],
    held_out: Sequence[Dialogue],
    recipe: Recipe,
    work: Path,
    progress: Progress,
) -> Healed:
    """Train `model` in place, or leave it as it is if that makes it agree less.

    head: token ids that the draft's head will keep.
    work: folder of the checkpoint; one of another recipe, model or text is not gone on with.
    Raises InvalidInput, and ModelError when a checkpoint cannot be written.
    """
    check_texts(texts, held_out)
    with rounding.rounded(model, recipe.precision):
        student = Student(model, head, recipe.loss).float()
        for name, parameter in student.named_parameters():
            parameter.requires_grad_("embed_tokens" not in name)
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        start = [parameter.detach().clone() for parameter in trained]
        facts = (
            json.dumps(asdict(recipe), sort_keys=True).encode(),
            np.asarray(head, dtype=np.int64).tobytes(),
        )
        run, writes = trainer.train(
            student, texts, recipe, trainer.identity(texts, student, *facts), work / trainer.CHECKPOINT,
            lambda student, device: _agreement(student, held_out, recipe.batch_tokens, device),
            "distilling", progress,
        )  # fmt: skip
        better = run.after > run.before
        if not better:
            with torch.no_grad():
                for parameter, before in zip(trained, start, strict=True):
                    parameter.copy_(before)
        after = run.after if better else run.before
        return Healed(run.before, after, tuple(run.losses), run.num_tokens, run.seconds, writes, better)


def _agreement(student: Any, texts: Sequence[Dialogue], batch_tokens: int, device: Any) -> float:
    hits = count = 0
    student.eval()
    with torch.no_grad():
        for groups in batches.plan(texts, 1.0, batch_tokens, seed=0):
            chosen = [texts[i] for i in groups[0]]
            hits += int(student(batches.batch(chosen, device))[1])
            count += sum(len(text.tokens) - text.start for text in chosen)
    student.train()
    return hits / count
