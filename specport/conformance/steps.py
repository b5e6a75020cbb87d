"""What the tests do with a model: feed tokens, read logits, grow trees, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from specport.core.arrays import to_host
from specport.core.ports import Block, CacheHandle, Model, Row, StepOutput
from specport.core.tree import TokenTree

Array = NDArray[np.floating[Any]]
# Without exact numerics, logits may differ by this share of their own spread: room for bf16, while one
# wrong token in the context moves them by about as much as they spread.
TOLERANCE = 0.25


def host(array: Any) -> Array:
    """Return a copy on the host, in float32 or float64: a step's output is valid until the next step only."""
    xp = array_namespace(array)
    if array.dtype not in (xp.float32, xp.float64):
        array = xp.astype(array, xp.float32)
    return np.array(to_host(array))


def cut(tokens: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """Return the first tokens in chunks of these sizes."""
    ends = np.cumsum([0, *sizes])
    return [tokens[a:b] for a, b in pairwise(ends)]


@dataclass(frozen=True)
class Probe:
    """Steps one model and compares what comes out."""

    model: Model

    def step(self, *rows: Row) -> list[Array]:
        """Return the logits of each row, [tokens, vocab]; commit nothing. Fails where one is refused."""
        output = self.model.step(rows)
        assert not output.refused, f"refused: {dict(output.refused)}"
        return self.split(output)

    @staticmethod
    def split(output: StepOutput) -> list[Array]:
        """Return the logits of each row, [0, vocab] where it owns none."""
        logits = host(output.logits)
        return [logits[a:b] for a, b in pairwise(output.offsets)]

    def feed(self, handle: CacheHandle, chunks: Sequence[Sequence[int]]) -> Array:
        """Step and commit chunks one by one; return the logits of all tokens, [tokens, vocab]."""
        parts = []
        for chunk in chunks:
            parts += self.step(Row(handle, Block.chain(chunk)))
            self.model.commit(handle, range(len(chunk)))
        return np.concatenate(parts)

    def fill(self, handle: CacheHandle, tokens: Sequence[int], chunk: int = 256) -> None:
        """Commit tokens whose logits nobody wants, in chunks."""
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            self.step(Row(handle, Block.chain(part), logits="none"))
            self.model.commit(handle, range(len(part)))

    def opened(self, tokens: Sequence[int]) -> CacheHandle:
        """Return a new sequence that holds these tokens."""
        handle = self.model.open()
        if tokens:
            self.fill(handle, tokens)
        return handle

    def next_logits(self, handle: CacheHandle, token: int) -> Array:
        """Return what follows `token`, [vocab], without committing it."""
        logits: Array = self.step(Row(handle, Block.chain([token])))[0][0]
        return logits

    def check(self, found: Array, expected: Array) -> None:
        """Fail where logits [rows, vocab] are not the expected ones: bit for bit on an exact device."""
        if not self.model.capabilities.exact:
            self.check_close(found, expected)
            return
        gap = _gap(found, expected)
        assert np.array_equal(found, expected), f"logits differ by up to {gap:.3g} on an exact device"

    def check_close(self, found: Array, expected: Array) -> None:
        """Fail where logits are not the expected ones but for rounding."""
        gap = _gap(found, expected)
        allowed = TOLERANCE * float(expected.std()) if expected.size else 0.0
        assert gap <= allowed, f"logits differ by up to {gap:.3g}; {allowed:.3g} is allowed"

    def random_tree(
        self, rng: np.random.Generator, truth: Sequence[int], most: int = 16
    ) -> tuple[TokenTree, list[int]]:
        """Return a random tree of at most `most` nodes with the path `truth` in it, and that path's nodes."""
        if self.model.capabilities.buckets:
            most = min(most, max(self.model.capabilities.buckets))
        tokens, parents, path = [truth[0]], [-1], [0]
        while len(path) < len(truth) or (rng.random() < 0.5 and len(tokens) < most):
            left = len(truth) - len(path)
            if left and (rng.random() < 0.5 or len(tokens) + left >= most):
                parents.append(path[-1])
                tokens.append(truth[len(path)])
                path.append(len(tokens) - 1)
            else:
                parents.append(int(rng.integers(-1, len(tokens))))
                tokens.append(int(rng.integers(3, self.model.vocab_size)))
        return TokenTree(tuple(tokens), tuple(parents)), path


def _gap(found: Array, expected: Array) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max(initial=0.0))
