"""Acceptance rules: decide which drafted tokens the target accepts, and the token that follows them.

Every rule here is lossless: the text has the distribution of plain decoding with the same sampling
parameters, for any draft.

Lossless rules have requirements on drafters. Siblings stand in the order in which they were chosen. The
`probs` entry of a sampled node is the distribution it was sampled from, given everything sampled before it.
A deterministic node may depend on siblings and ancestors before it, never on later samples. A sampled node
that repeats an earlier sibling's token stays in the tree: dropping it would change the distribution. Where
the tree stops may depend on the tokens sampled so far, but which sampled nodes are verified may not: a tree
that is re-ranked and cut after sampling, as EAGLE-2's, must declare its nodes deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from array_api_compat import array_namespace, device, is_numpy_array

from specport.core.arrays import Array, to_host
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.core.verify.scores import TargetScores
from specport.errors import InvalidInput


@dataclass(frozen=True)
class Verdict:
    """Hold what a verify step commits.

    path:  accepted nodes, from the root's child down.
    token: the correction after a rejection, or the bonus token after a fully accepted path.
    """

    path: tuple[int, ...]
    token: int


class AcceptanceRule(Protocol):
    """Decide what a verify step commits."""

    name: str

    def accept(self, tree: TokenTree, scores: TargetScores, sampler: Sampler) -> Verdict:
        """Return the accepted path of the tree and the token after it."""
        ...


class Greedy:
    """Follow the target's argmax down the tree; the limit of every rule below at temperature 0."""

    name = "greedy"

    def accept(self, tree: TokenTree, scores: TargetScores, sampler: Sampler) -> Verdict:
        return _followed(tree, scores.choice)


class Matching:
    """Draw each token from the target, and accept the child that has it, if there is one.

    One random number a token, in the order of the text, is what plain decoding takes: with the same seed the
    text is the same, token for token, whatever is drafted. So drafts must not take numbers from that stream:
    they are the likeliest tokens (`Generation.draft_sampler`). A child x is accepted with probability p(x),
    less often than where it is drawn and judged by `RejectionSampling`.
    """

    name = "match"

    def accept(self, tree: TokenTree, scores: TargetScores, sampler: Sampler) -> Verdict:
        return _followed(tree, lambda node: sampler.draw(scores.probs(node)))


class RejectionSampling:
    """Judge a tree node by node; a branch has several tries.

    A sampled child x is accepted with probability min(1, p(x) / q(x)). After a rejection the next sibling is
    judged by p := norm([p - q]+) (Leviathan et al., arXiv 2211.17192; SpecInfer, arXiv 2305.09781). A
    deterministic child is the case q = one-hot: accepted with p(x), and x is removed from p after a
    rejection. Sampled and deterministic siblings may be mixed, since each step is exact for any p that
    earlier steps left. Siblings sampled without replacement may all carry the same distribution: this rule
    removes the tokens of earlier sampled siblings from it.
    """

    name = "rejection"

    def accept(self, tree: TokenTree, scores: TargetScores, sampler: Sampler) -> Verdict:
        children = tree.children()
        path: list[int] = []
        while True:
            node = path[-1] if path else -1
            p = scores.probs(node)
            drawn: list[int] = []  # tokens of the sampled siblings that were rejected
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
    """Judge a sampled chain as a whole: exact, and never shorter in expectation than `RejectionSampling`.

    Sun et al., arXiv 2403.10444. Deterministic nodes count as sampled from a one-hot distribution. Trees are
    judged by `RejectionSampling`. So are wholly deterministic chains, for which both rules accept the same
    lengths and rejection sampling reads fewer rows.
    """

    name = "block"

    def accept(self, tree: TokenTree, scores: TargetScores, sampler: Sampler) -> Verdict:
        if not tree.is_chain or not tree.probs or all(q is None for q in tree.probs):
            return RejectionSampling().accept(tree, scores, sampler)
        n = len(tree)
        draft = [_drawn_from(tree, node) for node in range(n)]
        weights = [1.0]  # w_i: probability, given the sampled tokens, that at least i of them are accepted
        while len(weights) <= n and weights[-1] > 0:  # no token behind a 0 is accepted: skip those rows
            node = len(weights) - 1
            token, q = tree.tokens[node], draft[node]
            ratio = _probability(scores.probs(node - 1), token)
            if q is not None:
                ratio /= _probability(q, token)
            weights.append(min(1.0, weights[-1] * ratio))
        # Each length has its own trial and the longest success counts, so try from the end.
        if len(weights) > n and sampler.accepts(weights[n]):
            return Verdict(tuple(range(n)), sampler.draw(scores.probs(n - 1)))
        for kept in range(min(n, len(weights)) - 1, -1, -1):
            w, p = weights[kept], scores.probs(kept - 1)
            excess = _excess(w * p, draft[kept], tree.tokens[kept])  # [vocab]
            mass = float(array_namespace(excess).sum(excess))
            # Length 0 is always accepted. Without mass p equals q, which only rounding can reach.
            if kept == 0 or sampler.accepts(mass / (mass + 1.0 - w) if mass + 1.0 - w > 0 else 1.0):
                return Verdict(tuple(range(kept)), sampler.draw(_normalised(excess, fallback=p)))
        raise AssertionError("unreachable: length 0 is always accepted")


RULES: dict[str, type[RejectionSampling] | type[BlockVerification] | type[Matching]] = {
    "rejection": RejectionSampling,
    "block": BlockVerification,
    "match": Matching,
}


def rule_for(params: SamplingParams, name: str = "rejection") -> AcceptanceRule:
    """Return the rule of that name; greedy parameters always get `Greedy`, the limit of every rule.

    Raises InvalidInput for a name that is not in RULES.
    """
    if name not in RULES:
        raise InvalidInput(f"unknown acceptance rule {name!r}", f"choose one of {', '.join(RULES)}")
    return Greedy() if params.greedy else RULES[name]()


def _followed(tree: TokenTree, choose: Callable[[int], int]) -> Verdict:
    """Follow the target down the tree. choose: returns its token after a node (-1 = the root token)."""
    children = tree.children()
    path: list[int] = []
    node = -1
    while True:
        token = choose(node)
        match = next((c for c in children.get(node, ()) if tree.tokens[c] == token), None)
        if match is None:
            return Verdict(tuple(path), token)
        path.append(match)
        node = match


def _drawn_from(tree: TokenTree, node: int, excluded: Sequence[int] = ()) -> Array | None:
    """Return the distribution [vocab] that `node` was sampled from, or None when it is deterministic.

    excluded: tokens that the sampling left out.

    A token of probability 0 under q was not sampled from q: such a node (filling up siblings without
    replacement when q has no mass left) is deterministic too.
    """
    q = tree.probs[node] if tree.probs else None
    if q is None:
        return None
    for token in excluded:
        q = _without(q, token)
    return q if _probability(q, tree.tokens[node]) > 0 else None


def _probability(probs: Array, token: int) -> float:
    """Return an entry of [vocab] probabilities; draft and target may be padded to different widths."""
    return float(probs[token]) if token < probs.shape[0] else 0.0


def _excess(p: Array, q: Array | None, token: int) -> Array:
    """Return [vocab] max(p - q, 0), unnormalized; q = None is the one-hot distribution of `token`.

    For a q of another width: tokens beyond p's width have p = 0, tokens beyond q's width have q = 0.
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
    """Return q on p's device and in p's array library, which may differ from the draft's."""
    if type(q) is type(p) and device(q) == device(p):
        return q
    host = to_host(q)
    return host if is_numpy_array(p) else array_namespace(p).asarray(host, device=device(p))


def _normalised(excess: Array, fallback: Array) -> Array:
    """Return the residual distribution; `fallback` where only rounding error is left of it."""
    xp = array_namespace(excess)
    total = float(xp.sum(excess))
    return excess / total if total > 8 * float(xp.finfo(excess.dtype).eps) else fallback


def _without(q: Array, token: int) -> Array:
    """Return q conditioned on not sampling `token`; all zero when q has no other token."""
    zeroed = _zeroed(q, token)
    total = float(array_namespace(q).sum(zeroed))
    return zeroed / total if total > 0 else zeroed


def _zeroed(probs: Array, token: int) -> Array:
    """Return a copy of [vocab] `probs` with 0 at `token`."""
    copy = array_namespace(probs).asarray(probs, copy=True)
    if token < copy.shape[0]:
        copy[token] = 0.0
    return copy
