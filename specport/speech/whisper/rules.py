"""Whisper's rules for the next token: what is suppressed, and how timestamps come.

They are logits processors: pure functions of logits and prefix. So they hold on each candidate prefix of a
draft, for target and draft alike. The rules of timestamps cannot be a mask by prefix: whether a timestamp has
to come depends on the probabilities, too. They are those of OpenAI's whisper/decoding.py and of transformers'
WhisperTimeStampLogitsProcessor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array
from numpy.typing import NDArray

from specport.core.arrays import Array
from specport.core.sampling.processors import LogitsProcessor, as_float
from specport.speech.whisper.tokens import WhisperTokens


def processors(tokens: WhisperTokens, num_prompt_tokens: int, *, timestamps: bool) -> list[LogitsProcessor]:
    """Return the processors of one window, in the order of their use."""
    found: list[LogitsProcessor] = [Suppression(tokens, num_prompt_tokens)]
    if timestamps:
        found.append(TimestampRules(tokens, num_prompt_tokens))
    return found


class Suppression:
    """Forbid tokens: some everywhere, others at the beginning."""

    is_identity = False

    def __init__(self, tokens: WhisperTokens, begin: int) -> None:
        self._begin = begin
        always = {*tokens.suppressed, tokens.vocab}  # MASK of a draft that is run alone
        self._always = np.array(sorted(always), dtype=np.int64)
        self._first = np.array(sorted({*always, *tokens.suppressed_first}), dtype=np.int64)

    def __call__(self, logits: Array, prefix: Sequence[int]) -> Array:
        return _forbidden(logits, self._first if len(prefix) == self._begin else self._always)


class TimestampRules:
    """Let timestamps come in pairs that ascend, first of all, and where they are likelier than any word.

    begin: number of tokens of the prompt.
    """

    is_identity = False

    def __init__(self, tokens: WhisperTokens, begin: int, first_within: int | None = 50) -> None:
        self._begin, self._first_within = begin, first_within
        self._stamp, self._end, self._none = tokens.timestamp_begin, tokens.eot, tokens.no_timestamps

    def __call__(self, logits: Array, prefix: Sequence[int]) -> Array:
        logits = as_float(logits)
        vocab = int(logits.shape[0])
        if vocab <= self._stamp:  # a draft without timestamps
            return logits
        parts = [slice(start, stop) for start, stop in self._ranges(prefix, vocab) if start < stop]
        if is_numpy_array(logits):
            out = logits.copy()
            for part in parts:
                out[part] = -np.inf
            if self._likelier(out):
                out[: self._stamp] = -np.inf
            return out
        xp = array_namespace(logits)
        mask = np.zeros(vocab, dtype=np.bool_)
        for part in parts:
            mask[part] = True
        out = xp.where(xp.asarray(mask, device=device(logits)), -xp.inf, logits)
        words, stamps = out[: self._stamp], out[self._stamp :]
        best, top = xp.max(words), xp.max(stamps)
        # Where all are forbidden, the maximum is -inf and so is the sum.
        safe = xp.where(top > -xp.inf, top, 0.0)
        total = xp.log(xp.sum(xp.exp(stamps - safe))) + safe
        text = xp.arange(vocab, device=device(logits)) < self._stamp
        return xp.where(text & (total > best), -xp.inf, out)

    def _likelier(self, out: NDArray[np.floating]) -> bool:
        """Return whether timestamps together are likelier than any word."""
        words, stamps = out[: self._stamp], out[self._stamp :]
        top = stamps.max()
        if top == -np.inf:
            return False
        return bool(np.log(np.exp(stamps - top).sum()) + top > words.max())

    def _ranges(self, prefix: Sequence[int], vocab: int) -> list[tuple[int, int]]:
        """Return the ranges of ids that may not follow."""
        found = [(self._none, self._none + 1)]
        count = len(prefix) - self._begin
        if count <= 0:
            found.append((0, self._stamp))
            if self._first_within is not None:
                found.append((self._stamp + self._first_within + 1, vocab))
            return found
        was_stamp = prefix[-1] >= self._stamp
        was_pair = count < 2 or prefix[-2] >= self._stamp
        if was_stamp:
            found.append((self._stamp, vocab) if was_pair else (0, self._end))
        last = next((prefix[i] for i in range(-1, -count - 1, -1) if prefix[i] >= self._stamp), None)
        if last is not None:
            # A pair's second timestamp may be that of the first; after a pair it may not come again.
            found.append((self._stamp, last if was_stamp and not was_pair else last + 1))
        return found


def _forbidden(logits: Array, ids: NDArray[np.int64]) -> Array:
    """Return the [vocab] logits with -inf at these ids."""
    ids = ids[ids < logits.shape[0]]
    if is_numpy_array(logits):
        out = logits.copy()
        out[ids] = -np.inf
        return out
    xp = array_namespace(logits)
    mask = np.zeros(logits.shape[0], dtype=np.bool_)
    mask[ids] = True
    return xp.where(xp.asarray(mask, device=device(logits)), -xp.inf, logits)
