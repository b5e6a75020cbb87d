"""Group relative policy optimization: advantages within a prompt's samples, and the clipped loss.

Source: DeepSeekMath (arXiv 2402.03300), equations 3 and 4 and section 4.1.2, without the divergence from a
reference model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

CLIP = 0.2
_LEAST_SPREAD = 1e-4


def advantages(rewards: Tensor) -> Tensor:
    """Return (reward - mean) / (standard deviation + 1e-4) within each prompt's samples.

    rewards: [prompts, samples]. A prompt whose samples have equal rewards gives 0 for all of them.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    found = centred / (rewards.std(dim=1, keepdim=True, correction=0) + _LEAST_SPREAD)
    # A mean is rounded, and Adam would make whole steps of what is left of equal rewards.
    return torch.where((rewards == rewards[:, :1]).all(dim=1, keepdim=True), 0.0, found)


def loss(logprobs: Tensor, behaviour: Tensor, advantage: Tensor, mask: Tensor, clip: float = CLIP) -> Tensor:
    """Return -mean over samples of the mean over tokens of min(r * A, clip(r, 1 - clip, 1 + clip) * A).

    r = exp(logprob - behaviour) is the ratio of the trained model to the one that wrote the sample.

    logprobs, behaviour: [samples, tokens] log-probabilities of the samples' tokens.
    advantage: [samples]. mask: [samples, tokens] 1 for a sample's tokens, 0 behind its end.
    """
    ratio = torch.where(mask > 0, logprobs - behaviour, 0.0).exp()
    gain = torch.minimum(ratio * advantage[:, None], ratio.clamp(1 - clip, 1 + clip) * advantage[:, None])
    of_sample = (gain * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return -of_sample.mean()
