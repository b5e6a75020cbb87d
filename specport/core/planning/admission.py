"""Share the width of one step among the drafted trees of all its rows.

Each row's tree was chosen as if the other rows had their root tokens only. All trees together may be too
wide to pay. So nodes are admitted over all rows, likeliest first, while that raises the step's expected
tokens per second. Of two widths that are nearly as good the narrower one is taken: a shorter step serves
prompts and texts that wait sooner. Pure functions over trees, probabilities and a cost curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specport.core.planning.tree_pruning import Curve, row_widths, subtree
from specport.core.tree import TokenTree

# A wider step of several rows must be better by this share; costs are not known more precisely.
_GAIN = 0.03


@dataclass(frozen=True)
class Bid:
    """Hold one row's tree and its acceptance probabilities.

    probabilities: [n] that a node and all its ancestors are accepted.
    whole: the tree must not be cut: which sampled nodes are verified must not depend on their tokens, and a
           seeded text must not depend on other rows.
    """

    tree: TokenTree
    probabilities: Sequence[float]
    whole: bool = False


def admit(
    bids: Sequence[Bid], curve: Curve, num_prefill_tokens: int = 0, *, forked: bool, min_width: int
) -> list[TokenTree]:
    """Return each row's tree, cut to the nodes that pay in the whole step.

    curve: [width] seconds of a step by its new tokens; a wider step is cut to the curve.
    num_prefill_tokens: prompt tokens of other rows in the same step.
    forked, min_width: as in `Capabilities`.
    """
    width = num_prefill_tokens
    tokens = 0.0
    offers: list[tuple[float, int, int]] = []  # probability, row, new tokens: every row's best first
    orders: list[list[int]] = []
    for row, bid in enumerate(bids):
        order = list(range(len(bid.tree)))
        if not bid.whole:
            order = [
                int(node) for node in np.argsort(-np.asarray(bid.probabilities), kind="stable")
            ]  # parents first
        orders.append(order)
        widths = np.maximum([1, *row_widths(bid.tree, order, forked=forked)], min_width)
        tokens += 1.0
        if bid.whole:
            width += int(widths[-1])
            tokens += float(sum(bid.probabilities))
            continue
        width += int(widths[0])
        offers += [
            (bid.probabilities[n], row, int(more)) for n, more in zip(order, np.diff(widths), strict=True)
        ]
    # Nodes that replace padding are free and go first. Each row keeps its order: its first nodes are free.
    offers.sort(key=lambda offer: (offer[2] > 0, -offer[0]))
    total_width = np.cumsum([width, *(more for _, _, more in offers)])
    total_tokens = np.cumsum([tokens, *(probability for probability, _, _ in offers)])
    fits = max(1, int(np.searchsorted(total_width, len(curve))))
    seconds = curve[np.minimum(total_width[:fits], len(curve) - 1)]
    rates = total_tokens[:fits] / seconds
    alone = len(bids) == 1 and not num_prefill_tokens
    taken = int(np.argmax(rates if alone else rates >= rates.max() / (1.0 + _GAIN)))
    counts = [len(order) if bid.whole else 0 for bid, order in zip(bids, orders, strict=True)]
    for _, row, _ in offers[:taken]:
        counts[row] += 1
    return [subtree(bid.tree, order[:count]) for bid, order, count in zip(bids, orders, counts, strict=True)]
