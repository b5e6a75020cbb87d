"""The target's scores of a drafted tree, computed row by row on demand."""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import array_namespace, is_numpy_array

from specport.core.arrays import Array, to_host
from specport.core.sampling.processors import Prefix
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree


class TargetScores:
    """Compute the target's choices and distributions for a tree's nodes on demand, each at most once.

    logits:  [n + 1, vocab]; row 0 follows the root token, row i + 1 follows node i.
    context: all committed tokens, the root token last; append-only (see `sampling.Prefix`).
    above:   tokens between context and tree that were accepted but not committed yet.
    """

    def __init__(
        self,
        tree: TokenTree,
        logits: Array,
        sampler: Sampler,
        context: Sequence[int],
        above: tuple[int, ...] = (),
    ) -> None:
        self.tree = tree
        self._logits = logits
        self._sampler = sampler
        self._context, self._above = context, above
        self._argmax: list[int] | None = None
        self._probs: dict[int, Array] = {}

    def _prefix(self, node: int) -> Prefix:
        return Prefix(self._context, (*self._above, *(self.tree.tokens[i] for i in self.tree.path(node))))

    def choice(self, node: int) -> int:
        """Return the greedy token after `node` (-1 = the root token)."""
        # On a device one transfer gets the argmax of all rows; on the host only rows on the path are read.
        if not self._sampler.processes and not is_numpy_array(self._logits):
            return self.argmax()[node + 1]
        return self._sampler.likeliest(self._logits[node + 1, :], self._prefix(node))

    def argmax(self) -> list[int]:
        """Return [n + 1] the greedy token after each row, in one transfer without logits processors."""
        if self._argmax is None:
            if not self._sampler.processes:
                xp = array_namespace(self._logits)
                self._argmax = to_host(xp.argmax(self._logits, axis=-1)).tolist()
            else:
                self._argmax = [self.choice(node) for node in range(-1, len(self.tree))]
        return self._argmax

    def probs(self, node: int) -> Array:
        """Return [vocab] the target's distribution for the children of `node` (-1 = the root token)."""
        if node not in self._probs:
            row = self._logits[node + 1, :]
            self._probs[node] = self._sampler.distribution(row, self._prefix(node))
        return self._probs[node]
