"""Supervised training: both tokens of a pair learn the original's text, the confidence learns to judge.

The label of the confidence is the model's own probability of the right second token: the chance that a
sampled one would be it. A share of the answers' pairs is split into two tokens with PAD, so that the model
also learns to go on behind a second token that was not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specport.quantize.pipo import pairing
from specport.quantize.pipo.network import PairNetwork
from specport.quantize.pipo.recipe import Examined, Recipe
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import batches, trainer
from torch.nn import functional

from specport.models.kinds.pipo import THRESHOLD

if TYPE_CHECKING:
    from torch import Tensor


class Supervised(torch.nn.Module):  # type: ignore[misc]
    """Called with a batch of `train.batches`; returns loss and hits."""

    def __init__(self, network: PairNetwork, recipe: Recipe) -> None:
        super().__init__()
        self.network, self._recipe = network, recipe

    def forward(self, batch: dict[str, Tensor], step: int, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return loss and hits. What is split depends on seed and step only, so that a run can be resumed."""
        rng = np.random.default_rng((self._recipe.seed, step))
        torch.manual_seed(1_000_003 * self._recipe.seed + step)  # of the dropout
        share = rng.uniform(0.0, self._recipe.pad_share)
        texts = [
            pairing.in_pairs(text, start, rng.random(len(text)) < share, self.network.vocab)
            for text, start in pairing.texts_of(batch)
        ]
        pairs = pairing.batch(texts, batch["ids"].device)
        first, second, judged = scores(self.network, pairs)
        loss = functional.cross_entropy(first, pairs["answer"])
        hits, count = (first.argmax(-1) == pairs["answer"]).sum(), len(first)
        if len(second):
            loss = loss + functional.cross_entropy(second, pairs["answer_then"])
            own = second.detach().softmax(-1).gather(1, pairs["answer_then"][:, None])[:, 0]
            loss = loss + functional.binary_cross_entropy_with_logits(judged.float(), own)
            hits = hits + (second.argmax(-1) == pairs["answer_then"]).sum()
            count += len(second)
        return loss, hits * (len(batch["answer"]) / count)


def scores(network: PairNetwork, pairs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [places, vocab], those behind the next token [m, vocab], and the confidences' [m]."""
    states = network.states(pairs["first"], pairs["second"])
    seconds = network.second_states(states, pairs["nexts"])
    rows, columns = pairs["rows"], pairs["columns"]
    here, then = states[rows, columns], seconds[rows, columns][pairs["then"]]
    judged = network.confidence(here[pairs["then"]], then)
    return network.head(here), network.head(then), judged


def examine(network: PairNetwork, texts: Sequence[Dialogue], batch_tokens: int, device: Any) -> Any:
    """Return the entries of `Examined` on these texts."""
    network.eval()
    hits, counts, losses = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    kept = right = 0
    with torch.no_grad():
        for groups in batches.plan(texts, 1.0, batch_tokens, seed=0):
            chosen = [texts[i] for i in groups[0]]
            paired = [
                pairing.in_pairs(d.tokens, d.start, np.zeros(len(d.tokens), np.bool_), network.vocab)
                for d in chosen
            ]
            pairs = pairing.batch(paired, device)
            first, second, judged = scores(network, pairs)
            for i, (logits, name) in enumerate(((first, "answer"), (second, "answer_then"))):
                if len(logits):
                    hits[i] += (logits.argmax(-1) == pairs[name]).sum().cpu()
                    losses[i] += functional.cross_entropy(logits, pairs[name], reduction="sum").cpu()
                    counts[i] += len(logits)
            sure = judged.sigmoid() >= THRESHOLD
            kept += int(sure.sum())
            right += int((second.argmax(-1) == pairs["answer_then"])[sure].sum())
    network.train()
    share, loss = (hits / counts.clamp(min=1)).tolist(), (losses / counts.clamp(min=1)).tolist()
    total = max(1, int(counts[1]))
    found = Examined(share[0], share[1], loss[0], loss[1], kept / total, right / max(1, kept))
    return {name: trainer.finite(value, 4) for name, value in asdict(found).items()}
