"""What a target accepts of an MTP head, by depth and by the target's entropy: exactly, without sampling.

For each place of a text and each depth k of a chain behind it, with the target's distribution p and the
head's q there: rejection sampling accepts a token drawn from q with probability sum min(p, q), and
target-only acceptance, which drafts the likeliest token of q, with p of that token (Bebop, arXiv 2606.12370).
Chains follow the text; products over depths are the chance that a chain is accepted down to k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.quantize.mtp.student import MtpStudent, states_of
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import batches

Array = NDArray[np.float64]
RULES = ("rejection", "target-only")


@dataclass(frozen=True)
class Chains:
    """Hold what is accepted of chains.

    alpha:   [chains, depth] of tokens drawn from q. likeliest: [chains, depth] of the likeliest tokens.
    entropy: [chains, depth] of the target where each token is predicted, in nats.
    text:    [chains] number of the text that each belongs to.
    """

    alpha: Array
    likeliest: Array
    entropy: Array
    text: NDArray[np.int64]

    def by_depth(self, rule: str) -> Array:
        """Return [depth] the mean acceptance of a token by a rule of RULES, given those before it."""
        found: Array = self._chances(rule).mean(axis=0)
        return found

    def lengths(self, rule: str, depth: int) -> Array:
        """Return [chains] the expected accepted tokens of chains of `depth` tokens."""
        found: Array = self._chances(rule)[:, :depth].cumprod(axis=1).sum(axis=1)
        return found

    def mean_entropy(self, depth: int) -> Array:
        """Return [chains] the target's mean entropy over the first `depth` tokens."""
        found: Array = self.entropy[:, :depth].mean(axis=1)
        return found

    def slope(self, rule: str, depth: int) -> float:
        """Return the slope of accepted tokens against the mean entropy, in tokens a nat, by least squares."""
        return slope(self.mean_entropy(depth), self.lengths(rule, depth))

    def _chances(self, rule: str) -> Array:
        return {"rejection": self.alpha, "target-only": self.likeliest}[rule]


def slope(x: Array, y: Array) -> float:
    """Return the slope of the line through points by least squares; 0 where all x are equal."""
    spread = float(np.square(x - x.mean()).sum())
    return float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread else 0.0


def measure(
    student: MtpStudent, texts: Sequence[Dialogue], rows: NDArray[Any], columns: Sequence[int]
) -> Chains:
    """Return the acceptance of all whole chains in the answers of texts.

    texts: with states of whole texts. rows: [vocab, width] of the target's whole head, for the whole of p.
    columns: ids of the student's columns.
    Raises ValueError where no answer is longer than a chain.
    """
    head, kept = torch.from_numpy(rows), torch.as_tensor([*columns])
    found: list[tuple[Any, ...]] = []
    for number, text in enumerate(texts):
        batch = batches.batch([text], "cpu")
        with torch.no_grad():
            levels = [*student.levels(batch, whole=True)]
            if not levels or not len(levels[0].rows):
                continue
            logits = states_of(batch)[batch["rows"], batch["columns"]] @ head.T
            log_p = torch.log_softmax(logits, dim=1)
            p = log_p.exp()
            entropy = -(p * log_p).sum(dim=1)
            on_columns = p[:, kept]
            alphas, tops, entropies = [], [], []
            for level in levels:
                q, target = torch.softmax(level.logits.float(), dim=1), on_columns[level.rows]
                alphas.append(torch.minimum(q, target).sum(dim=1))
                tops.append(target.gather(1, q.argmax(dim=1, keepdim=True))[:, 0])
                entropies.append(entropy[level.rows])
        stacked = (torch.stack(part, dim=1).double().numpy() for part in (alphas, tops, entropies))
        found.append((*stacked, np.full(len(alphas[0]), number)))
    if not found:
        raise ValueError("no answer is longer than a chain")
    alpha, likeliest, entropies_, owner = (np.concatenate(part) for part in zip(*found, strict=True))
    return Chains(alpha, likeliest, entropies_, owner)


def bins(chains: Chains, rule: str, depth: int, edges: Sequence[float]) -> list[dict[str, float]]:
    """Return accepted tokens by the target's mean entropy: for each bin its middle, mean and chains."""
    entropy, length = chains.mean_entropy(depth), chains.lengths(rule, depth)
    found = []
    for low, high in pairwise(edges):
        inside = (entropy >= low) & (entropy < high)
        if inside.any():
            found.append(
                {"entropy": float(entropy[inside].mean()), "accepted": float(length[inside].mean()),
                 "chains": int(inside.sum())}
            )  # fmt: skip
    return found


def gain(
    one: Chains, other: Chains, rule: str, depth: int, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return how many more tokens a chain of `one` has accepted than of `other`, and its 95 % interval.

    Both are of the same texts. The interval is by bootstrap over texts, whose chains depend on each other.
    """
    difference = one.lengths(rule, depth) - other.lengths(rule, depth)
    count = int(one.text.max()) + 1
    sums = np.bincount(one.text, weights=difference, minlength=count)
    sizes = np.bincount(one.text, minlength=count)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(count, size=(draws, count))
    means = sums[drawn].sum(axis=1) / np.maximum(sizes[drawn].sum(axis=1), 1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)
