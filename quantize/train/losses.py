"""Losses between a student and the target's text: on the target's tokens, or on its likeliest tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Kullback-Leibler divergence from the target, cross-entropy of its tokens, and total variation, which is what
# sampled acceptance depends on (LK losses, arXiv 2602.23881).
LOSSES = ("kl", "ce", "tv")


def token_loss(logits: Tensor, batch: dict[str, Tensor], column: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Return the weighted mean loss over the answers' tokens, and how many of them have the largest logit.

    logits: [answer tokens, columns], -inf where a token cannot be proposed.
    batch:  as `batches.batch` makes it.
    column: [vocab] the column of each id; -1 = none.
    loss:   one of LOSSES.
    """
    log_q = torch.log_softmax(logits.float(), dim=-1)
    answer = column[batch["answer"]]
    hits = (log_q.argmax(dim=-1) == answer).sum()
    if loss == "ce":
        losses, possible = cross_entropies(picked(log_q, answer[:, None])[:, 0])
    else:
        losses = divergences(picked(log_q, column[batch["top_ids"]]), batch["top_probs"], loss)
        possible = torch.ones_like(losses, dtype=torch.bool)
    losses = losses[possible]
    if "weights" not in batch:
        return losses.mean(), hits
    weights = batch["weights"][possible]
    return (weights * losses).sum() / weights.sum(), hits


def picked(log_q: Tensor, columns: Tensor) -> Tensor:
    """Return [tokens, k] the log-probabilities [tokens, columns] at these columns; -inf where it is -1."""
    return torch.where(columns >= 0, log_q.gather(1, columns.clamp(min=0)), -math.inf)


def cross_entropies(log_answer: Tensor) -> tuple[Tensor, Tensor]:
    """Return [tokens] the cross-entropy of each token, and whether it can be proposed; 0 where it cannot.

    log_answer: [tokens] log-probability of each token.
    """
    possible = log_answer.isfinite()
    return -torch.where(possible, log_answer, 0.0), possible


def divergences(log_top: Tensor, top_probs: Tensor, loss: str) -> Tensor:
    """Return [tokens] the divergence of each token's distribution from the target's.

    log_top, top_probs: [tokens, k] log-probabilities of the target's likeliest ids, and the target's
                        probabilities of them.
    loss: "kl" or "tv".
    """
    p = torch.where(log_top.isfinite(), top_probs, 0.0)
    # All ids that are not listed count as one more id.
    rest_p = (1.0 - p.sum(dim=1)).clamp(min=0.0)
    rest_q = (1.0 - log_top.exp().sum(dim=1)).clamp(min=1e-7)
    if loss == "tv":
        return 0.5 * ((p - log_top.exp()).abs().sum(dim=1) + (rest_p - rest_q).abs())
    finite = torch.where(log_top.isfinite(), log_top, 0.0)  # p is 0 there
    listed = torch.where(p > 0, p * (p.clamp(min=1e-12).log() - finite), 0.0).sum(dim=1)
    rest = torch.where(rest_p > 0, rest_p * (rest_p.clamp(min=1e-12).log() - rest_q.log()), 0.0)
    return listed + rest
