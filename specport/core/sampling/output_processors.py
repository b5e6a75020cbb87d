"""Logits processors that look at the output alone: penalties by count, biases, a minimum length.

They belong to one sequence, since they have to know where its prompt ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from specport.core.arrays import Array
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import LogitsProcessor, Prefix, as_float


def output_processors(
    params: SamplingParams, num_prompt_tokens: int, end_ids: Collection[int]
) -> list[LogitsProcessor]:
    """Return the processors that the parameters of one sequence imply, in the order of their use.

    end_ids: tokens that end the text.
    """
    return [
        OutputPenalties(params.frequency_penalty, params.presence_penalty, num_prompt_tokens),
        LogitBias(params.logit_bias),
        MinNewTokens(params.min_new_tokens, num_prompt_tokens, end_ids),
    ]


class OutputPenalties:
    """Lower the logit of each token of the output: by its count times `frequency`, and once by `presence`.

    As in OpenAI's API and in vLLM, tokens of the prompt do not count. Negative penalties raise it.
    """

    def __init__(self, frequency: float, presence: float, num_prompt_tokens: int) -> None:
        self._frequency, self._presence, self._start = frequency, presence, num_prompt_tokens
        self._base: Sequence[int] = ()
        self._counted = num_prompt_tokens  # tokens of `_base` that `_counts` covers, prompt included
        self._counts: Counter[int] = Counter()

    @property
    def is_identity(self) -> bool:
        return self._frequency == self._presence == 0.0

    def __call__(self, logits: Array, prefix: Sequence[int]) -> Array:
        counts = self._counted_in(prefix)
        # A draft's vocabulary may be narrower.
        ids = [token for token in counts if token < logits.shape[0]]
        if not ids:
            return logits
        amounts = np.asarray([self._frequency * counts[token] + self._presence for token in ids])
        return _lowered(as_float(logits), ids, amounts)

    def _counted_in(self, prefix: Sequence[int]) -> Counter[int]:
        """Return how often each token occurs in the output. Reads each token of an append-only base once."""
        base, path = (prefix.base, prefix.path) if isinstance(prefix, Prefix) else (prefix, ())
        if base is not self._base or len(base) < self._counted:
            self._base, self._counted, self._counts = base, self._start, Counter()
        self._counts.update(base[self._counted :])
        self._counted = max(self._counted, len(base))
        return self._counts + Counter(path) if path else self._counts


class LogitBias:
    """Add a constant to the logits of some tokens."""

    def __init__(self, bias: Sequence[tuple[int, float]]) -> None:
        self._bias = dict(bias)

    @property
    def is_identity(self) -> bool:
        return not any(self._bias.values())

    def __call__(self, logits: Array, prefix: Sequence[int]) -> Array:
        ids = [token for token in self._bias if token < logits.shape[0]]
        return _lowered(as_float(logits), ids, -np.asarray([self._bias[token] for token in ids]))


class MinNewTokens:
    """Forbid the tokens that end the text until the output has this many tokens."""

    def __init__(self, least: int, num_prompt_tokens: int, end_ids: Collection[int]) -> None:
        self._length = num_prompt_tokens + least
        self._ends = sorted(end_ids) if least > 0 else []

    @property
    def is_identity(self) -> bool:
        return not self._ends

    def __call__(self, logits: Array, prefix: Sequence[int]) -> Array:
        if len(prefix) >= self._length:
            return logits
        ids = [token for token in self._ends if token < logits.shape[0]]
        return _lowered(as_float(logits), ids, np.full(len(ids), np.inf))


def _lowered(logits: Array, ids: Sequence[int], amounts: np.ndarray) -> Array:
    """Return the [vocab] logits with the amounts [ids] subtracted at these tokens."""
    if is_numpy_array(logits):
        out = logits.copy()
        out[np.asarray(ids, dtype=np.int64)] -= amounts.astype(logits.dtype)
        return out
    xp = array_namespace(logits)
    whole = np.zeros(logits.shape[0], dtype=np.float64)
    whole[np.asarray(ids, dtype=np.int64)] = amounts
    return logits - xp.asarray(whole, dtype=logits.dtype, device=device(logits))
