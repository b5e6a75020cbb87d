"""Log-probabilities of output tokens, and of the tokens that the target found likeliest in their places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specport.core.arrays import Array, to_host
from specport.core.sampling.topk import largest

MOST = 20  # alternatives of a token, as in OpenAI's API


@dataclass(frozen=True)
class TokenLogprob:
    """Hold the log-probability of one output token.

    top: (token, log-probability) of the likeliest tokens in its place, likeliest first. The output token is
         among them only where it is one of these.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: Array, token: int, num_top: int) -> TokenLogprob:
    """Return the log-softmax of the [vocab] logits at a token and at the `num_top` largest.

    Computed in float64 on the host, so that equal logits give equal results on every device.
    """
    raw = to_host(logits)
    row = raw.astype(np.float64)
    best = row.max()
    logprobs = row - best - np.log(np.exp(row - best).sum())
    top = largest(raw[None], num_top)[0].tolist() if num_top else ()
    return TokenLogprob(token, float(logprobs[token]), tuple((i, float(logprobs[i])) for i in top))
