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
    """Return the mean loss over the answers' tokens, and how many of them have the largest logit.

    logits: [answer tokens, columns], -inf where a token cannot be proposed.
    batch:  as `batches.batch` makes it.
    column: [vocab] the column of each id; -1 = none.
    loss:   one of LOSSES.
    """
    log_q = torch.log_softmax(logits.float(), dim=-1)
    answer = column[batch["answer"]]
    hits = (log_q.argmax(dim=-1) == answer).sum()
    if loss == "ce":
        log_answer = log_q.gather(1, answer.clamp(min=0)[:, None])[:, 0]
        possible = (answer >= 0) & log_answer.isfinite()
        return -log_answer[possible].mean(), hits
    ids = column[batch["top_ids"]]
    log_top = torch.where(ids >= 0, log_q.gather(1, ids.clamp(min=0)), -math.inf)
    p = torch.where(log_top.isfinite(), batch["top_probs"], 0.0)
    # All ids that are not listed count as one more id.
    rest_p = (1.0 - p.sum(dim=1)).clamp(min=0.0)
    rest_q = (1.0 - log_top.exp().sum(dim=1)).clamp(min=1e-7)
    if loss == "tv":
        return 0.5 * ((p - log_top.exp()).abs().sum(dim=1) + (rest_p - rest_q).abs()).mean(), hits
    finite = torch.where(log_top.isfinite(), log_top, 0.0)  # p is 0 there
    listed = torch.where(p > 0, p * (p.clamp(min=1e-12).log() - finite), 0.0).sum(dim=1)
    rest = torch.where(rest_p > 0, rest_p * (rest_p.clamp(min=1e-12).log() - rest_q.log()), 0.0)
    return (listed + rest).mean(), hits
