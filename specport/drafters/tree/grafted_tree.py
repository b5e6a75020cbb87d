"""The tree that a draft's nodes and retrieved ones share; Graft (`drafters.graft`) fills it."""

from __future__ import annotations

from specport.core.tree import TokenTree, path_to


class Grafted:
    """The tree to verify: at most `budget` nodes, no two children of a node alike. chain: no branches."""

    def __init__(self, budget: int, chain: bool) -> None:
        self._budget = budget
        self._chain = chain
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._confidence: list[float] = []
        self._sources: list[str] = []
        self._children: dict[int, dict[int, int]] = {}  # node -> its children by token

    @property
    def full(self) -> bool:
        return len(self._tokens) >= self._budget

    def add(self, parent: int | None, token: int, confidence: float, source: str) -> int | None:
        """The node for this token below `parent`: the one there is, a new one, or None without a place."""
        if parent is None:
            return None
        siblings = self._children.setdefault(parent, {})
        if token in siblings:
            node = siblings[token]
            self._confidence[node] = max(self._confidence[node], confidence)
            return node
        if self.full or (self._chain and siblings):
            return None
        siblings[token] = len(self._tokens)
        self._tokens.append(token)
        self._parents.append(parent)
        self._confidence.append(confidence)
        self._sources.append(source)
        return siblings[token]

    def likeliest_leaf(self) -> int:
        """Where the path of likeliest children ends; -1 in an empty tree."""
        node = -1
        while children := self._children.get(node):
            node = max(children.values(), key=self._confidence.__getitem__)
        return node

    def path(self, node: int) -> tuple[int, ...]:
        """Tokens from the root's child to `node`."""
        return tuple(self._tokens[i] for i in path_to(self._parents, node))

    def tree(self) -> TokenTree:
        return TokenTree(
            tuple(self._tokens),
            tuple(self._parents),
            confidence=tuple(self._confidence),
            sources=tuple(self._sources),
        )
