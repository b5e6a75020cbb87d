"""Check once that a decoder gives the logits of transformers' own forward pass when it runs on cache slots.

Tests compare every architecture of a table. The check is for architectures that are not in it: one with an
attention that slots do not have is refused, not answered wrongly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specport.backends.torch.slots.attention import ATTENTION

from specport.core.arrays import to_host
from specport.core.ports import Block, Model, Row
from specport.errors import ModelError
from specport.models.cache import cache_root
from specport.runtime import numerics

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPLIT, _COUNT = 9, 16  # the tokens are read in two steps
# Allowed difference of logits, in their standard deviations. Rounding stays below, a wrong mask does not.
_ALLOWED, _ALLOWED_HALF = 0.02, 0.5
# In half precision rounding sends some tokens to other experts, whose logits then are far off. A wrong mask
# changes all tokens of a step, or all but the first, so there a quarter of them has to be near.
_NEAR = 0.25


class Parity:
    """Compare a model on cache slots with what transformers computes, the first time that it is loaded.

    Make it before anything in the model is replaced.

    key: names the weights, the device and all versions.
    """

    def __init__(self, model: Any, key: str) -> None:
        self._answers, self._key = numerics.Answers(cache_root() / "exact.json"), f"{key}-parity"
        known = self._answers.get(self._key)
        self._want = None if known else _reference(model)
        self._tokens = _tokens(model)
        self._half = model.dtype != torch.float32

    def check(self, found: Model) -> None:
        """Raise ModelError where the logits of a model on slots are others."""
        if self._want is None:
            return
        handle, parts = found.open(), []
        for chunk in (self._tokens[:_SPLIT], self._tokens[_SPLIT:]):
            parts.append(to_host(found.step([Row(handle, Block.chain(chunk))]).logits).copy())
            found.commit(handle, range(len(chunk)))
        found.close(handle)
        gap = self._gap(np.concatenate(parts))
        if not gap <= (_ALLOWED_HALF if self._half else _ALLOWED):  # NaN is not
            raise ModelError(f"its logits differ from those of transformers by {gap:.2g} standard deviations")
        self._answers.put(self._key, True)

    def _gap(self, logits: NDArray[np.float32]) -> float:
        """Return the difference of logits [tokens, vocab] from those of transformers, of the worse step."""
        assert self._want is not None
        gaps = np.abs(logits - self._want).max(axis=1) / self._want.std()
        share = _NEAR if self._half else 1.0
        return float(max(np.quantile(step, share) for step in (gaps[:_SPLIT], gaps[_SPLIT:])))


def _reference(model: Any) -> NDArray[np.float32]:
    """Return the logits [tokens, vocab] of a short text, read at once into transformers' own cache."""
    ours = model.config._attn_implementation == ATTENTION
    if ours:
        model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            tokens = torch.tensor([_tokens(model)], device=model.device)
            return _host(model(input_ids=tokens, use_cache=True).logits[0])
    except Exception as error:  # any code of transformers may fail here
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise ModelError(f"transformers cannot run it: {type(error).__name__}: {reason}") from error
    finally:
        if ours:
            model.set_attn_implementation(ATTENTION)


def _tokens(model: Any) -> list[int]:
    vocab = model.get_input_embeddings().weight.shape[0]
    return [int(i) for i in np.random.default_rng(0).integers(0, vocab, _COUNT)]


def _host(logits: Any) -> NDArray[np.float32]:
    return np.asarray(to_host(logits.float()), dtype=np.float32)
