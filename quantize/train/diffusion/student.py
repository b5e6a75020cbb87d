"""The student: a decoder that fills in masks, with the loss and the measurements of its training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import batches, trainer
from specport.quantize.train.attention_mask import additive
from specport.quantize.train.diffusion.recipe import Quality, Recipe
from specport.quantize.train.diffusion.rows import Packed, noised, pack
from specport.quantize.train.log_probabilities import HeadPart, log_probabilities

if TYPE_CHECKING:
    from torch import Tensor

EXAMINED = 2048  # about so many tokens of held-out answers are measured


class DiffusionStudent(torch.nn.Module):  # type: ignore[misc]
    """A decoder whose logits at a mask are those of the token that stands there: not shifted, as in SDAR.

    All layers are trained, and the embedding of the mask. Other embeddings and the head are not.

    ends: ids that end a text.
    """

    def __init__(self, model: Any, mask_token: int, ends: Collection[int], recipe: Recipe) -> None:
        super().__init__()
        self.body = model.model
        self.register_buffer("head", model.get_output_embeddings().weight.detach(), persistent=False)
        self._recipe, self.mask_token, self._ends = recipe, mask_token, frozenset(ends)
        embedding = self.body.embed_tokens
        self._scale = float(getattr(embedding, "embed_scale", 1.0))  # gemma scales its embeddings
        self.mask = torch.nn.Parameter(embedding.weight[mask_token].detach().clone())

    def forward(self, batch: Mapping[str, Tensor], step: int, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return the loss, and how many of the answers' tokens are the likeliest ones at their masks.

        The masks depend on seed and step only, so that a run can be resumed.
        """
        rng = np.random.default_rng((self._recipe.seed, step))
        packed = self.packed(batch, rng)
        logs, best = self.scores(packed)
        return -(packed.weights * logs).sum() / packed.weights.sum(), ((logs >= best) & packed.real).sum()

    def packed(self, batch: Mapping[str, Tensor], rng: np.random.Generator) -> Packed:
        """Return the rows of a batch with the masks that `rng` draws."""
        texts = noised(batch, self._recipe.block, self._ends, rng)
        return pack(texts, self.mask_token, batch["ids"].device)

    def outputs(self, packed: Packed) -> Tensor:
        """Return the head's inputs [predictions, width]."""
        embedded = self.body.embed_tokens(packed.ids)
        is_mask = (packed.ids == self.mask_token)[:, :, None]
        embedded = torch.where(is_mask, self._scale * self.mask.to(embedded.dtype), embedded)
        hidden = self.body(
            inputs_embeds=embedded,
            attention_mask=additive(packed.visible(), embedded.dtype),
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state
        return hidden[packed.texts, packed.places]

    def scores(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Return [predictions] the log-probability of each answer, and of the likeliest token.

        The mask has none, as no text has it.
        """
        outputs = self.outputs(packed)
        never = torch.arange(len(self.head), device=outputs.device)[None] == self.mask_token
        logs, best = log_probabilities(outputs, [HeadPart(self.head, never)], packed.answers[:, None])
        return logs[:, 0], best


def examine(student: Any, texts: Sequence[Dialogue], recipe: Recipe, device: Any) -> dict[str, Any]:
    """Return the entries of a `Quality` on the first of these texts."""
    student = getattr(student, "module", student)  # unwrap it where several processes train
    hits, losses, counts = (np.zeros(recipe.block + 1) for _ in range(3))
    weighted = weight = 0.0
    rng = np.random.default_rng(recipe.seed)
    student.eval()
    with torch.no_grad(), trainer.autocast(device):
        for groups in batches.plan(some(texts), 1.0, recipe.batch_tokens, seed=0):
            packed = student.packed(batches.batch([texts[i] for i in groups[0]], device), rng)
            logs, best = student.scores(packed)
            loss, hit = (-logs).cpu().numpy(), (logs >= best).cpu().numpy()
            count, weights, real = (x.cpu().numpy() for x in (packed.counts, packed.weights, packed.real))
            for sums, values in ((hits, hit), (losses, loss), (counts, np.ones(len(count)))):
                np.add.at(sums, count[real], values[real])
            # What stands behind the end is easy. It counts as loss, not as a token: a bound stays one.
            weighted, weight = weighted + float(weights @ loss), weight + float(weights[real].sum())
    student.train()
    there = np.maximum(counts[1:], 1)
    return {
        "accuracy": [round(float(x), 4) for x in hits[1:] / there],
        "loss": [trainer.finite(x, 4) for x in losses[1:] / there],
        "perplexity": trainer.finite(np.exp(np.minimum(weighted / weight, 50.0)), 3),
    }


def quality(found: Mapping[str, Any]) -> Quality:
    """Return what `examine` found."""
    return Quality(tuple(found["accuracy"]), tuple(found["loss"]), found["perplexity"])


def some(texts: Sequence[Dialogue]) -> Sequence[Dialogue]:
    """Return the first texts with about EXAMINED tokens of answers together."""
    total = np.cumsum([len(text.tokens) - text.start for text in texts])
    return texts[: 1 + int(np.searchsorted(total, EXAMINED))]
