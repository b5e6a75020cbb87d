"""On-policy distillation: the pair model learns from the unmodified model what it should have written.

It answers prompts in pairs. The unmodified model reads these texts as plain text, without PAD. Both tokens of
a pair learn the reverse divergence KL(pair model || unmodified model) in their places, over the whole
vocabulary: the mean of what the paper estimates from the sampled tokens. The confidence in a sampled second
token y, kept or not, learns min(1, p(y) / q(y)): the chance that speculative sampling would accept it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from specport.quantize.pipo import pairing
from specport.quantize.pipo.network import PairNetwork
from specport.quantize.pipo.recipe import Recipe
from specport.quantize.pipo.rollout import Rollout, rollout
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


class OnPolicy(torch.nn.Module):  # type: ignore[misc]
    """Called with a batch of `train.batches`, of which only the prompts are read; returns loss and hits.

    The hits are the mean label of the confidence, times the number of answer tokens.
    """

    def __init__(self, network: PairNetwork, recipe: Recipe, ends: frozenset[int]) -> None:
        super().__init__()
        self.network, self._recipe, self._ends = network, recipe, ends

    def forward(self, batch: dict[str, Tensor], step: int, num_steps: int) -> tuple[Tensor, Tensor]:
        recipe, network = self._recipe, self.network
        seed = 1_000_003 * (recipe.seed + 1) + step
        prompts = [text[:start] for text, start in pairing.texts_of(batch)]
        pairs_at_most = -(-recipe.rollout // 2)
        rng = torch.Generator().manual_seed(seed)
        answers = rollout(network, prompts, pairs_at_most, recipe.rollout_threshold, self._ends, rng)
        torch.manual_seed(seed)  # of the dropout
        loss, label = divergence(network, answers, batch["ids"].device)
        return loss, label * len(batch["answer"])


def divergence(network: PairNetwork, answers: list[Rollout], device: object) -> tuple[Tensor, Tensor]:
    """Return the loss on these answers, and the mean label of the confidence."""
    pairs = pairing.batch([answer.text for answer in answers], device)
    states = network.states(pairs["first"], pairs["second"])
    seconds = network.second_states(states, pairs["nexts"])
    rows, columns = pairs["rows"], pairs["columns"]
    here, then = states[rows, columns], seconds[rows, columns]
    # The places are those behind which a token was written: one for each step of the rollouts, in order.
    sampled = torch.as_tensor(np.concatenate([answer.sampled for answer in answers]), device=rows.device)
    longest = max(len(answer.text.tokens) for answer in answers)
    plain = torch.zeros(len(answers), longest, dtype=torch.long, device=rows.device)
    for i, answer in enumerate(answers):
        plain[i, : len(answer.text.tokens)] = torch.from_numpy(answer.text.tokens).to(rows.device)
    behind = np.concatenate([a.text.ends[_places(a)] for a in answers])
    at = torch.as_tensor(behind, device=rows.device)  # tokens before the first of each step
    with torch.no_grad():
        teacher = network.original(plain)
        log_p = network.head(teacher[rows, at - 1]).log_softmax(-1)
        log_p_then = network.head(teacher[rows, at]).log_softmax(-1)
    first, log_q_then = network.head(here).log_softmax(-1), network.head(then).log_softmax(-1)
    loss = _reverse(first, log_p) + _reverse(log_q_then, log_p_then)
    with torch.no_grad():
        ratio = (log_p_then - log_q_then).gather(1, sampled[:, None])[:, 0]
        label = ratio.exp().clamp(max=1.0)
    judged = network.confidence(here, then).float()
    return loss + functional.binary_cross_entropy_with_logits(judged, label), label.mean()


def _places(answer: Rollout) -> np.ndarray:
    """Return the pairs behind which a token was written."""
    text = answer.text
    return np.flatnonzero((text.ends >= text.start) & (text.ends < len(text.tokens)))


def _reverse(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return the mean KL(q || p) of [places, vocab] log-probabilities."""
    found: Tensor = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    return found
