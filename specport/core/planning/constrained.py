"""Cut drafts to what a text's constraint allows, before they cost a step."""

from __future__ import annotations

from specport.core.planning.tree_pruning import subtree
from specport.core.ports import DraftRequest
from specport.core.sampling.constraint import allows
from specport.core.sampling.processors import Prefix
from specport.core.tree import TokenTree


def held(request: DraftRequest, tree: TokenTree) -> TokenTree:
    """Return the tree without deterministic nodes that the constraint forbids and all that is below them.

    The target would reject these nodes in any case, so the text stays the same. Drawn nodes stay: they were
    drawn under the constraint, or their rejection is part of the law.
    """
    constraint = request.sampler.constraint
    if constraint is None or not len(tree):
        return tree
    kept: set[int] = {-1}
    masks = {}
    paths: dict[int, tuple[int, ...]] = {-1: ()}
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        if parent not in kept:
            continue
        if not tree.probs or tree.probs[node] is None:
            if parent not in masks:
                masks[parent] = constraint.mask(Prefix(request.context, paths[parent]))
            if not allows(masks[parent], token):
                continue
        kept.add(node)
        paths[node] = (*paths[parent], token)
    return subtree(tree, sorted(kept - {-1}))
