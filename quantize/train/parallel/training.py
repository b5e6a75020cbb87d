"""Training of a parallel draft: several tokens from one pass (PARD, arXiv 2504.18583; PARD-2, 2605.08632).

The student learns the target's distribution at each token of the text, as in `distil.py`, and behind chains
of MASK tokens in place of the tokens in between (`chains.py`). All layers and the embedding of MASK
are trained. MASK is an id that no text has, and no column of the head.
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
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import rounding, trainer
from specport.quantize.train.attention_mask import additive
from specport.quantize.train.distil import Distillation, Student, train_student
from specport.quantize.train.log_probabilities import computed_in, log_probabilities
from specport.quantize.train.losses import columns_of, cross_entropies, divergences
from specport.quantize.train.parallel import bigrams
from specport.quantize.train.parallel.chains import PackedRows, packed_sample
from specport.quantize.train.parallel.examination import RANKED, SURVIVAL, examine
from specport.quantize.train.recipe import Recipe

from specport.models.kinds.bigrams import Bigrams
from specport.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

_CE = 0.1  # weight of the cross-entropy beside the divergence
_PIECE = 256  # predictions whose logits are in memory at a time while drafts are examined
EXAMINED = 2048  # about so many tokens of held-out answers are drafted before and after the training


@dataclass(frozen=True)
class Parallel:
    """Result of a training for parallel drafting.

    survival_before, survival: by depth, the share of drafts of held-out text whose tokens up to this one are
               all the target's.
    temperatures: by depth.
    bigrams:   that its tokens are ranked by, with which `survival` and `temperatures` were measured; None
               where they do not raise the mean number of accepted tokens.
    unranked:  survival without them.
    distillation: its agreement is that of depth 0.
    """

    distillation: Distillation
    survival_before: tuple[float, ...]
    survival: tuple[float, ...]
    temperatures: tuple[float, ...]
    unranked: tuple[float, ...]
    bigrams: Bigrams | None = None


def add_mask(model: Any, first: int, texts: Sequence[Dialogue]) -> int:
    """Return the id of MASK: the first one from `first` on that no text has, appended where there is none.

    first: the first id that the tokenizer does not know. The embedding of MASK becomes the mean of all that
           it knows, unless the model has been trained with this MASK already.
    """
    used = {int(token) for text in texts for token in np.unique(text.tokens) if token >= first}
    mask = next(token for token in range(first, first + len(used) + 1) if token not in used)
    if getattr(model.config, "pard_token", None) == mask:
        return mask
    if mask >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(mask + 1, mean_resizing=False)
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[mask] = weight[:first].mean(dim=0)
    return mask


class ParallelStudent(Student):
    """A decoder with the head that the draft will have, which drafts `depth` tokens in one pass.

    Called with a batch, it returns the loss, and the hits of depth 0.
    """

    def __init__(self, model: Any, head: Sequence[int], recipe: Recipe, mask_token: int) -> None:
        super().__init__(model, head, recipe.loss)
        self._recipe, self.mask_token = recipe, mask_token
        embedding = self.body.embed_tokens
        self._scale = float(getattr(embedding, "embed_scale", 1.0))  # gemma scales its embeddings
        self.mask = torch.nn.Parameter(embedding.weight[mask_token].detach().clone())

    def forward(self, batch: dict[str, Tensor], step: int = 0, num_steps: int = 1) -> tuple[Tensor, Tensor]:
        """Return loss and hits."""
        packed = packed_sample(batch, self._recipe.parallel, self.mask_token, self._recipe.seed, step)
        more, column, unseen = self._context(packed.facts)
        wanted = columns_of(packed.facts, column)
        logs, best = log_probabilities(self.outputs(packed), self._parts(more, unseen), wanted)
        hits = ((logs[:, 0] >= best) & (packed.prediction_depths == 0)).sum()
        losses, _ = cross_entropies(logs[:, 0])
        if self._loss != "ce":
            losses = _CE * losses + divergences(logs[:, 1:], packed.facts["top_probs"], self._loss)
        return (packed.weights * losses).sum() / packed.weights.sum(), hits

    def outputs(self, packed: PackedRows) -> Tensor:
        """Return the head's inputs [predictions, width]."""
        embedded = self.body.embed_tokens(packed.ids)
        is_mask = (packed.ids == self.mask_token)[:, :, None]
        embedded = torch.where(is_mask, self._scale * self.mask.to(embedded.dtype), embedded)
        hidden = self.body(
            inputs_embeds=embedded,
            attention_mask=self._attention(packed, embedded.dtype),
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state
        return hidden[packed.texts, packed.places]

    def pieces(self, outputs: Tensor, packed: PackedRows) -> Any:
        """Yield log-probabilities [piece, columns] of some predictions, where they are, and the columns."""
        more, column, unseen = self._context(packed.facts)
        dtype = computed_in(outputs)
        head, more = self.head.to(dtype), more.to(dtype)
        for start in range(0, len(outputs), _PIECE):
            where = slice(start, start + _PIECE)
            inputs = outputs[where].to(dtype)
            added = (inputs @ more.T).masked_fill(unseen[where], -math.inf)
            logits = torch.cat([inputs @ head.T, added], dim=1)
            yield torch.log_softmax(logits.float(), dim=-1), where, column

    def _attention(self, packed: PackedRows, dtype: torch.dtype) -> Any:
        """Return the attention mask; for a model with sliding windows one of each kind of layer."""
        visible = packed.visible()
        masks = {"full_attention": additive(visible, dtype)}
        config = self.body.config
        if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
            return masks["full_attention"]
        distance = packed.positions[:, :, None] - packed.positions[:, None, :]
        masks["sliding_attention"] = additive(visible & (distance < config.sliding_window), dtype)
        return masks


def train_parallel(
    model: Any,
    head: Sequence[int],
    mask_token: int,
    texts: Sequence[Dialogue],
    held_out: Sequence[Dialogue],
    recipe: Recipe,
    work: Path,
    progress: Progress,
) -> Parallel:
    """Train `model` in place to draft `recipe.parallel` tokens in one pass.

    Undone where it does not raise the mean number of accepted tokens on `held_out`. Arguments and errors as
    for `distil.distil`. mask_token: see `add_mask`; it must not be in `head`.
    """
    trainer.check_texts(texts, held_out)
    pairs = bigrams.count(texts)
    kept = _some(held_out)
    with rounding.rounded(model, recipe.precision):
        student = ParallelStudent(model, head, recipe, mask_token).float()
        facts = (
            json.dumps(asdict(recipe), sort_keys=True).encode(),
            np.asarray([mask_token, *head], dtype=np.int64).tobytes(),
        )
        run, writes, better = train_student(
            student, texts, recipe, facts, work,
            lambda student, device: examine(
                student, kept, recipe.parallel, recipe.batch_tokens, device, pairs
            ),
            lambda found: sum(found[SURVIVAL]), "training parallel drafts", progress,
        )  # fmt: skip
        with torch.no_grad():
            model.get_input_embeddings().weight[mask_token] = student.mask
    before, after = run.before, run.after if better else run.before
    ranks = better and sum(after[RANKED][SURVIVAL]) > sum(after[SURVIVAL])
    best = after[RANKED] if ranks else after
    survival, unranked = tuple(best[SURVIVAL]), tuple(after[SURVIVAL])
    distillation = Distillation(
        before[SURVIVAL][0], unranked[0], tuple(run.losses), run.num_tokens, run.seconds, writes, better
    )
    return Parallel(
        distillation, tuple(before[SURVIVAL]), survival, tuple(best["temperatures"]), unranked,
        pairs if ranks else None,
    )  # fmt: skip


def _some(texts: Sequence[Dialogue]) -> Sequence[Dialogue]:
    """Return the first texts with about EXAMINED tokens of answers together."""
    total = np.cumsum([len(text.tokens) - text.start for text in texts])
    return texts[: 1 + int(np.searchsorted(total, EXAMINED))]
