"""Drafter with a head on the target's hidden states (`HiddenHead`): no second model, no prompt to read.

Each step of the head costs a few percent of a step of the target. It reads the target's states of the last
verified token, so it drafts only for sequences whose last token the target has read with them.
"""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import array_namespace

from specport.core.ports import Array, Drafted, DraftRequest, HiddenHead, Needs, Outcome, Prefilled
from specport.drafters.model.drafter import ReadingDrafter
from specport.drafters.model.expand import Expansion
from specport.drafters.model.head import DraftHead
from specport.drafters.model.last_hidden import LastHidden
from specport.drafters.model.reading import Level

_ROOT = -1


class HeadReading:
    """Implement `Reading` with a head on hidden states: the state behind each node of a draft.

    target_vocab: width of the target's logits.
    """

    batch = tree = True

    def __init__(self, head: HiddenHead, target_vocab: int) -> None:
        self.hidden = LastHidden(head.layers)
        self._network, self._head = head, DraftHead(target_vocab, head.columns)
        self._states: dict[int, dict[int, Array]] = {}  # key -> node -> [1, width]; a chain has its last node

    def fits(self, request: DraftRequest) -> bool:
        """Return whether the target has read the token before the root token with its hidden states."""
        return self.hidden.before(request.key, len(request.context) - 1) is not None

    def behind(self, request: DraftRequest) -> int:
        return 1

    def head(self, key: int) -> DraftHead:
        return self._head

    def begin(self, requests: Sequence[DraftRequest]) -> Array:
        """Return the first states [n, width], for requests that fit."""
        found = [self.hidden.before(request.key, len(request.context) - 1) for request in requests]
        known = [hidden for hidden in found if hidden is not None]
        assert len(known) == len(requests)  # they fit
        return self._network.begin(
            {layer: _joined([hidden[layer] for hidden in known]) for layer in self._network.layers}
        )

    def catch_up(self, requests: Sequence[DraftRequest]) -> list[Array | None]:
        logits, states = self._network.step(self.begin(requests), [r.context[-1] for r in requests])
        for i, request in enumerate(requests):
            self._states[request.key] = {_ROOT: states[i : i + 1, :]}
        return [logits[i, :] for i in range(len(requests))]

    def chains(self, requests: Sequence[DraftRequest]) -> None:
        """Return None: `HiddenHeadDrafter` drafts greedy chains by `HiddenHead.draft`."""

    def score(self, rows: Sequence[Level]) -> list[list[Array]]:
        asked: list[tuple[int, int, int]] = []  # sequence, node, parent
        for row in rows:
            # A chain comes as its last token, whose state takes the place of the one before.
            nodes = [(_ROOT, _ROOT)] if row.kept else [(n, row.tree.parents[n]) for n in row.asked]
            asked += [(row.key, node, parent) for node, parent in nodes]
        before = [self._states[key][parent] for key, _, parent in asked]
        tokens = [row.tree.tokens[node] for row in rows for node in row.asked]
        logits, states = self._network.step(_joined(before), tokens)
        for i, (key, node, _) in enumerate(asked):
            self._states[key][node] = states[i : i + 1, :]
        number = iter(range(len(asked)))
        return [[logits[next(number), :] for _ in row.asked] for row in rows]

    def forget(self, key: int) -> None:
        self._states.pop(key, None)
        self.hidden.forget(key)

    def rewind(self, key: int, length: int) -> None:
        """Do nothing: states of a token that is not the last one are not used."""


class HiddenHeadDrafter(ReadingDrafter):
    """Draft chains, or trees where the plan has branches, with a head on the target's hidden states.

    target_vocab: as for `HeadReading`.
    """

    needs = Needs(hidden=True)

    def __init__(self, head: HiddenHead, target_vocab: int, *, name: str = "head") -> None:
        self._network, self._states = head, HeadReading(head, target_vocab)
        super().__init__(self._states, name)

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        self._states.hidden.prefilled(events)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self._states.hidden.observe(outcomes)

    def _grow(self, trees: list[Expansion]) -> None:
        trees = [tree for tree in trees if tree.request.plan.depth > 0]
        chains = [tree for tree in trees if _is_greedy_chain(tree.request)]
        others = [tree for tree in trees if not _is_greedy_chain(tree.request)]
        if chains:
            self._grow_chains(chains)
        if others:
            super()._grow(others)

    def _grow_chains(self, trees: list[Expansion]) -> None:
        """Draft greedy chains by pieces, and stop each where its rule says so."""
        requests = [tree.request for tree in trees]
        states, tokens = self._states.begin(requests), [r.context[-1] for r in requests]
        while trees:
            depth = min(self._network.together, max(t.request.plan.depth - len(t) for t in trees))
            drafted = self._network.draft(states, tokens, depth)
            chains, confidences = drafted.tokens.tolist(), drafted.confidences.tolist()
            left = [i for i, tree in enumerate(trees) if _extended(tree, chains[i], confidences[i])]
            states, tokens = drafted.states, [chains[i][-1] for i in left]
            if 0 < len(left) < len(trees):
                states = _joined([states[i : i + 1, :] for i in left])
            trees = [trees[i] for i in left]


def _is_greedy_chain(request: DraftRequest) -> bool:
    """Return whether the likeliest tokens are wanted, of which a stop rule sees the confidence at most."""
    plan = request.plan
    return request.sampler.plain_greedy and not plan.branches and (plan.stop is None or not plan.stop.top_k)


def _extended(tree: Expansion, tokens: Sequence[int], confidences: Sequence[float]) -> bool:
    """Add tokens to a chain; return whether it goes on behind them."""
    plan = tree.request.plan
    for token, confidence in zip(tokens, confidences, strict=True):
        if len(tree) == plan.depth:
            return False
        tree.add(len(tree) - 1, token, None if plan.stop is None else confidence)
        if plan.stop is not None and not plan.stop.goes_on(Drafted(tuple(tree.confidence))):
            return False
    return len(tree) < plan.depth


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else array_namespace(arrays[0]).concat(list(arrays), axis=0)
