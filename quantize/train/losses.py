"""Losses between a student and the target's text.

`token_loss` has those of a draft that learns from the target's likeliest tokens. CHAIN_LOSSES has those of a
head that learns to draft several tokens in a row, by the target's whole distribution at each of them.

With the target's distribution p and the draft's q, sampled drafts are accepted with probability
alpha = sum min(p, q) = 1 - TV(p, q) (Leviathan et al., arXiv 2211.17192).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-6  # of an acceptance whose logarithm is taken
_DECAY = 3.0  # of the share of KL in "lk-mix" with the acceptance, as in vllm-project/speculators


def token_loss(logs: Tensor, best: Tensor, batch: dict[str, Tensor], loss: str) -> tuple[Tensor, Tensor]:
    """Return the weighted mean loss over the answers' tokens, and how many of them are the likeliest.

    logs:  [answer tokens, 1 + k] log-probabilities of the text's token and of `top_ids`; -inf where a token
           cannot be proposed. best: [answer tokens] that of the likeliest token.
    batch: as `batches.batch` makes it.
    loss:  one of `recipe.LOSSES`.
    """
    hits = (logs[:, 0] >= best).sum()
    if loss == "ce":
        losses, possible = cross_entropies(logs[:, 0])
    else:
        losses = divergences(logs[:, 1:], batch["top_probs"], loss)
        possible = torch.ones_like(losses, dtype=torch.bool)
    losses = losses[possible]
    if "weights" not in batch:
        return losses.mean(), hits
    weights = batch["weights"][possible]
    return (weights * losses).sum() / weights.sum(), hits


def columns_of(batch: Mapping[str, Tensor], column: Tensor) -> Tensor:
    """Return [answer tokens, 1 + k] the columns of the text's token and of `top_ids`; -1 = none.

    column: [vocab] the column of each id; -1 = none.
    """
    return torch.cat([column[batch["answer"]][:, None], column[batch["top_ids"]]], dim=1)


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


class _Overlap(torch.autograd.Function):  # type: ignore[misc]
    """Compute sum min(p, q) with q = softmax(z): the gradient is q_j (1[q_j <= p_j] - S), S = sum 1[q<=p] q.

    One pass over the vocabulary each way (Bebop, arXiv 2606.12370, section on the fused kernel), where
    autograd would keep four arrays of that size.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, probs: Tensor) -> Tensor:
        q = torch.softmax(logits.float(), dim=-1)
        context.save_for_backward(q, q <= probs)
        return torch.minimum(q, probs).sum(dim=-1)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        q, under = context.saved_tensors
        found = torch.where(under, q, 0.0)
        found = found - q * found.sum(dim=-1, keepdim=True)
        return found * gradients[0][..., None], None


def overlaps(logits: Tensor, probs: Tensor) -> Tensor:
    """Return [...] the probability that a token sampled from softmax(logits) is accepted.

    logits: [..., columns] of the draft. probs: [..., columns] the target's probabilities; where the draft has
            no column for some ids, they sum to less than 1, and the missing mass is never accepted.
    """
    found: Tensor = _Overlap.apply(logits, probs)
    return found


@dataclass(frozen=True)
class Drafted:
    """Hold what a head says at one depth of its chains, and what the target says there.

    logits: [chains, columns] of the head. probs: [chains, columns] as for `overlaps`.
    answer: [chains] column of the text's token; -1 = none.
    """

    logits: Tensor
    probs: Tensor
    answer: Tensor


def _cross_entropy(drafted: Drafted) -> Tensor:
    log_q = torch.log_softmax(drafted.logits.float(), dim=-1)
    return cross_entropies(picked(log_q, drafted.answer[:, None])[:, 0])[0]


def _divergence(drafted: Drafted) -> Tensor:
    """Return KL(p || q) over the columns, with p normalised there."""
    p = drafted.probs / drafted.probs.sum(dim=-1, keepdim=True).clamp(min=_LEAST)
    log_q = torch.log_softmax(drafted.logits.float(), dim=-1)
    return torch.xlogy(p, p).sum(dim=-1) - (p * log_q).sum(dim=-1)


def _acceptance(drafted: Drafted) -> Tensor:
    return overlaps(drafted.logits, drafted.probs)


def _variation(drafted: Drafted) -> Tensor:
    return 1.0 - _acceptance(drafted)


def _log_acceptance(drafted: Drafted) -> Tensor:
    return -_acceptance(drafted).clamp(min=_LEAST).log()


def _mixed(drafted: Drafted) -> Tensor:
    alpha = _acceptance(drafted)
    share = torch.exp(-_DECAY * alpha.detach())
    return share * _divergence(drafted) + (1.0 - share) * (1.0 - alpha)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([*values]).mean()


def _end_to_end(values: Sequence[Tensor]) -> Tensor:
    """Return 1 - the mean prefix product of acceptances: the share of a chain that is not accepted."""
    return 1.0 - torch.stack([*values], dim=-1).cumprod(dim=-1).mean()


@dataclass(frozen=True)
class ChainLoss:
    """A loss of chains.

    value: of each chain at one depth, [chains]. join: the loss of these values, one tensor a depth.
    whole: whether it needs chains whose tokens all lie inside the answer, so that all depths have equally
           many; else deeper levels may have fewer.
    """

    value: Callable[[Drafted], Tensor]
    join: Callable[[Sequence[Tensor]], Tensor] = _mean
    whole: bool = False


# Cross-entropy, Kullback-Leibler divergence; total variation a token, and of the chain: 1 - mean_k
# prod_{i<=k} alpha_i (Bebop, equation 13); -log alpha, and its mix with KL (LK losses, arXiv 2602.23881).
CHAIN_LOSSES = {
    "ce": ChainLoss(_cross_entropy),
    "kl": ChainLoss(_divergence),
    "tv": ChainLoss(_variation),
    "e2e-tv": ChainLoss(_acceptance, _end_to_end, whole=True),
    "lk": ChainLoss(_log_acceptance),
    "lk-mix": ChainLoss(_mixed),
}
