"""Acceptance rules: which drafted tokens the target keeps, and the token that follows them.

Every rule here is lossless: the text has the law of plain decoding with the same sampling
parameters, whatever the draft proposes.

What a drafter must respect for that: siblings stand in the order in which they were chosen. A drawn
node's `probs` entry is the distribution it was really drawn from, given everything drawn before it;
a deterministic node may depend on siblings and ancestors before it, never on later draws. A drawn
node that repeats an earlier sibling's token stays in the tree: dropping it would change the law.
Where the tree stops may depend on the tokens drawn so far, but which drawn nodes are shown may not
(a tree that is re-ranked and cut after drawing, as EAGLE-2's, must call its nodes deterministic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from array_api_compat import array_namespace, device, is_numpy_array

from specport.core.sampling.sampler import Array, Prefix, Sampler, SamplingParams, to_host
from specport.core.tree import TokenTree
from specport.errors import InvalidInput


@dataclass(frozen=True)
class Verdict:
    """What is committed after a verify step.

    path:  accepted nodes, from the root's child down.
    token: the correction behind a rejection, or the bonus token behind a fully accepted path.
    """

    path: tuple[int, ...]
    token: int


class TargetScores:
    """The target's view of a tree: processed lazily, each row at most once.

    logits:  [n + 1, vocab]; row 0 follows the root token, row i + 1 follows node i.
    context: all committed tokens, the root token last; append-only (see `sampler.Prefix`).
    """

    def __init__(self, tree: TokenTree, logits: Array, sampler: Sampler, context: Sequence[int]) -> None:
        self.tree = tree
        self._logits = logits
        self._sampler = sampler
        self._context = context
        self._argmax: list[int] | None = None
        self._probs: dict[int, Array] = {}

    def _prefix(self, node: int) -> Prefix:
        return Prefix(self._context, tuple(self.tree.tokens[i] for i in self.tree.path(node)))

    def choice(self, node: int) -> int:
        """The greedy token after `node` (-1 = the root token)."""
        # A device answers for all rows in one transfer; on the host, rows off the path cost nothing.
        if self._sampler.params.repetition_penalty == 1.0 and not is_numpy_array(self._logits):
            return self.argmax()[node + 1]
        row = self._sampler.process(self._logits[node + 1, :], self._prefix(node))
        return int(array_namespace(row).argmax(row))

    def argmax(self) -> list[int]:
        """[n + 1] the greedy token after each row, in one transfer where no penalty applies."""
        if self._argmax is None:
            if self._sampler.params.repetition_penalty == 1.0:
                xp = array_namespace(self._logits)
                self._argmax = to_host(xp.argmax(self._logits, axis=-1)).tolist()
            else:
                self._argmax = [self.choice(node) for node in range(-1, len(self.tree))]
        return self._argmax

    def probs(self, node: int) -> Array:
        """[vocab] the target's distribution for the children of `node` (-1 = the root token)."""
        if node not in self._probs:
            row = self._logits[node + 1, :]
            self._probs[node] = self._sampler.distribution(row, self._prefix(node))
        return self._probs[node]


class AcceptanceRule(Protocol):
    """Decides what a verify step commits."""

    name: str
    lossless: bool

    def accept(self, tree: TokenTree, scores: TargetScores, sampler: Sampler) -> Verdict: ...


class Greedy:
    """Follow the target's argmax down the tree; the limit of every rule below at temperature 0."""

    name = "greedy"
    lossless = True

    def accept(self, tree: TokenTree, scores: TargetScores, sampler: Sampler) -> Verdict:
        children = tree.children()
        path: list[int] = []
        node = -1
        while True:
            token = scores.choice(node)
            match = next((c for c in children.get(node, ()) if tree.tokens[c] == token), None)
            if match is None:
                return Verdict(tuple(path), token)
            path.append(match)
            node = match


class RejectionSampling:
    """Token by token, with several tries at a branch.

    A drawn child x is kept with probability min(1, p(x) / q(x)); after a rejection the next sibling
    meets p := norm([p - q]+) (Leviathan et al., 2211.17192; SpecInfer, 2305.09781). A deterministic
    child is the case q = one-hot: kept with p(x), then p without x. Drawn and deterministic siblings
    mix, since each step is exact for any p that the steps before it left.
    Siblings drawn without replacement may all carry the same distribution: tokens of earlier drawn
    siblings are taken out of it here.
    """

    name = "rejection"
    lossless = True

    def accept(self, tree: TokenTree, scores: TargetScores, sampler: Sampler) -> Verdict:
        children = tree.children()
        path: list[int] = []
        while True:
            node = path[-1] if path else -1
            p = scores.probs(node)
            drawn: list[int] = []  # tokens of drawn siblings that were rejected
            for child in children.get(node, ()):
                token = tree.tokens[child]
                q = _drawn_from(tree, child, () if tree.replacement else drawn)
                chance = _probability(p, token)
                if q is not None:
                    chance /= _probability(q, token)
                    drawn.append(token)
                if sampler.accepts(chance):
                    path.append(child)
                    break
                p = _normalised(_excess(p, q, token), fallback=p)
            else:
                return Verdict(tuple(path), sampler.draw(p))


class BlockVerification:
    """Judge a drawn chain as a whole: exact, and its expected length is never below token by token.

    Sun et al., arXiv 2403.10444. Deterministic nodes count as drawn from a one-hot distribution.
    Trees go to `RejectionSampling`, and so do wholly deterministic chains, where both rules accept
    the same lengths and the lazy one is cheaper.
    """

    name = "block"
    lossless = True

    def accept(self, tree: TokenTree, scores: TargetScores, sampler: Sampler) -> Verdict:
        if not tree.is_chain or not tree.probs or all(q is None for q in tree.probs):
            return RejectionSampling().accept(tree, scores, sampler)
        n = len(tree)
        draft = [_drawn_from(tree, node) for node in range(n)]
        weights = [1.0]  # w_i: chance, given the drawn tokens, that at least i of them are kept
        while len(weights) <= n and weights[-1] > 0:  # behind a 0 nothing is kept: spare those rows
            node = len(weights) - 1
            token, q = tree.tokens[node], draft[node]
            ratio = _probability(scores.probs(node - 1), token)
            if q is not None:
                ratio /= _probability(q, token)
            weights.append(min(1.0, weights[-1] * ratio))
        # Each length has its own trial and the longest that succeeds counts, so try from the end.
        if len(weights) > n and sampler.accepts(weights[n]):
            return Verdict(tuple(range(n)), sampler.draw(scores.probs(n - 1)))
        for kept in range(min(n, len(weights)) - 1, -1, -1):
            w, p = weights[kept], scores.probs(kept - 1)
            excess = _excess(w * p, draft[kept], tree.tokens[kept])  # [vocab]
            mass = float(array_namespace(excess).sum(excess))
            # Length 0 is certain. Without mass p equals q, and only rounding brings us here.
            if kept == 0 or sampler.accepts(mass / (mass + 1.0 - w) if mass + 1.0 - w > 0 else 1.0):
                return Verdict(tuple(range(kept)), sampler.draw(_normalised(excess, fallback=p)))
        raise AssertionError("unreachable: length 0 is always accepted")


RULES: dict[str, type[RejectionSampling] | type[BlockVerification]] = {
    "rejection": RejectionSampling,
    "block": BlockVerification,
}


def rule_for(params: SamplingParams, name: str = "rejection") -> AcceptanceRule:
    """The rule of that name; greedy parameters always get `Greedy`, the cheap limit of them all.

    Raises InvalidInput for a name that is not in RULES.
    """
    if name not in RULES:
        raise InvalidInput(f"unknown acceptance rule {name!r}", f"choose one of {', '.join(RULES)}")
    return Greedy() if params.greedy else RULES[name]()


def _drawn_from(tree: TokenTree, node: int, excluded: Sequence[int] = ()) -> Array | None:
    """The distribution [vocab] that `node` was drawn from, or None when it is deterministic.

    excluded: tokens that the draw left out. A token that q cannot draw was not drawn from q: such a
    node (what fills up a draw without replacement once q has run dry) is deterministic too.
    """
    q = tree.probs[node] if tree.probs else None
    if q is None:
        return None
    for token in excluded:
        q = _without(q, token)
    return q if _probability(q, tree.tokens[node]) > 0 else None


def _probability(probs: Array, token: int) -> float:
    """Entry of [vocab] probabilities; draft and target may be padded to different widths."""
    return float(probs[token]) if token < probs.shape[0] else 0.0


def _excess(p: Array, q: Array | None, token: int) -> Array:
    """[vocab] the part of p above q, unnormalised; q = None is the one-hot distribution of `token`.

    For a q of another width: tokens that only q knows have p = 0, tokens that only p knows q = 0.
    """
    xp = array_namespace(p)
    if q is None:
        return _zeroed(p, token)
    q = _beside(q, p)
    shared = min(p.shape[0], q.shape[0])
    excess = p[:shared] - q[:shared]
    excess = xp.where(excess > 0, excess, 0.0)
    return excess if shared == p.shape[0] else xp.concat([excess, p[shared:]])


def _beside(q: Array, p: Array) -> Array:
    """q where p is: a draft may run on another device, in another array library."""
    if type(q) is type(p) and device(q) == device(p):
        return q
    host = to_host(q)
    return host if is_numpy_array(p) else array_namespace(p).asarray(host, device=device(p))


def _normalised(excess: Array, fallback: Array) -> Array:
    """The residual distribution; `fallback` where nothing but rounding error is left of it."""
    xp = array_namespace(excess)
    total = float(xp.sum(excess))
    return excess / total if total > 8 * float(xp.finfo(excess.dtype).eps) else fallback


def _without(q: Array, token: int) -> Array:
    """q given that it did not draw `token`; all zero when it could draw nothing else."""
    zeroed = _zeroed(q, token)
    total = float(array_namespace(q).sum(zeroed))
    return zeroed / total if total > 0 else zeroed


def _zeroed(probs: Array, token: int) -> Array:
    """A copy of [vocab] `probs` without `token`."""
    copy = array_namespace(probs).asarray(probs, copy=True)
    if token < copy.shape[0]:
        copy[token] = 0.0
    return copy
