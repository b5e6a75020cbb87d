"""The tree of drafted and retrieved nodes, filled by Graft (`drafters.tree.graft`)."""

from __future__ import annotations

from specport.core.tree_builder import TreeBuilder


class GraftedTree(TreeBuilder):
    """Build the tree to verify: at most `budget` nodes, distinct siblings. chain: no branches."""

    def __init__(self, budget: int, chain: bool) -> None:
        super().__init__()
        self._budget, self._chain = budget, chain
        self._children: dict[int, dict[int, int]] = {}  # node -> its children by token

    @property
    def full(self) -> bool:
        """Return whether the budget is used up."""
        return len(self) >= self._budget

    def graft(self, parent: int | None, token: int, confidence: float, source: str) -> int | None:
        """Return this token's node below `parent`, added where it is missing; None without room.

        parent: None = not in the tree, so nothing is added.
        """
        if parent is None:
            return None
        siblings = self._children.setdefault(parent, {})
        if token in siblings:
            node = siblings[token]
            self.confidence[node] = max(self.confidence[node], confidence)
            return node
        if self.full or (self._chain and siblings):
            return None
        siblings[token] = self.add(parent, token, confidence, source=source)
        return siblings[token]

    def likeliest_leaf(self) -> int:
        """Return the leaf of the path of likeliest children; -1 in an empty tree."""
        node = -1
        while children := self._children.get(node):
            node = max(children.values(), key=self.confidence.__getitem__)
        return node
