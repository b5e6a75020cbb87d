"""Tiered verification: a slim verifier judges drafts, and the target only where a gate asks for it. Lossy.

VIA-SD (arXiv 2606.12243). The slim verifier steps on every tree. Position by position the gate
(`gates.py`) accepts a drafted token, puts the slim verifier's own token in its place, or leaves the position
to the target:

    accept      the walk goes on below the token; at a leaf the round ends, without a bonus token
    regenerate  the slim verifier's own token ends the round, unless it was drafted
    escalate    the target reads all tokens that were accepted without it, and the rest of the tree, in one
                step. Its logits are there now, so it judges the rest by the lossless rule of the sequence

Positions without a draft are the target's: nobody has proposed a token that a second opinion could confirm.
So where a gate escalates everywhere the text is that of lossless verification, with the same random numbers.
The paper routes each position behind an escalated one anew; here the target's logits are not thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from specport.core.arrays import Array
from specport.core.ports import Block, Needs, Refusal, Row, StepOutput, TierCounts
from specport.core.sampling.processors import Prefix
from specport.core.sampling.topk import largest
from specport.core.tree import TokenTree
from specport.core.verify.gates import OWN, TARGET, Gate, Law
from specport.core.verify.rules import Verdict
from specport.core.verify.scores import TargetScores
from specport.core.verify.tiered_model import TieredHandle, TieredModel
from specport.core.verify.verifier import Verification, VerifyRequest

_MOST = 512  # tokens that the target reads at once to catch up


@dataclass
class _Turn:
    """Hold what one request has come to in a round.

    path:    nodes that the slim verifier accepted.
    own:     its own token behind them; None = there is none.
    unread:  tokens that the target has to read before `rest`, the last committed or accepted token included.
    rest:    the part of the tree that the target judges; nodes: the index in the tree of each of its nodes.
    calls:   steps of the target so far.
    refused: why the round did not take place.
    """

    request: VerifyRequest
    path: list[int] = field(default_factory=list)
    own: int | None = None
    escalated: bool = False
    unread: list[int] = field(default_factory=list)
    rest: TokenTree = field(default_factory=TokenTree)
    nodes: list[int] = field(default_factory=list)
    verdict: Verdict | None = None
    top: NDArray[np.int64] | None = None
    calls: int = 0
    refused: Refusal | None = None

    @property
    def handle(self) -> TieredHandle:
        handle: TieredHandle = self.request.handle
        return handle

    @property
    def above(self) -> tuple[int, ...]:
        """Return the tokens that the slim verifier accepted in this round."""
        return tuple(self.request.tree.tokens[node] for node in self.path)


class TieredVerifier:
    """Verify with a slim verifier, and with the target where the gate asks for it. Lossy.

    needs: top-k to return with each answer. Hidden states would be the target's, which lacks some tokens.
    Raises ValueError for needs of hidden states.
    """

    def __init__(self, model: TieredModel, gate: Gate, needs: Needs = Needs()) -> None:  # noqa: B008
        if needs.hidden:
            raise ValueError("tiered verification has no hidden states")
        self._model, self._gate, self._top_k = model, gate, needs.top_k
        self._most = min(_MOST, max(model.capabilities.buckets, default=_MOST))

    def verify(self, requests: Sequence[VerifyRequest]) -> tuple[list[Verification | Refusal], float]:
        turns = [_Turn(request) for request in requests]
        output = self._model.thin.step([_slim_row(request) for request in requests])
        began = time.perf_counter()
        for i, turn in enumerate(turns):
            turn.refused = output.refused.get(i)
            if turn.refused is None:
                self._route(turn, output.logits_of(i))
        host = time.perf_counter() - began if output.seconds else 0.0
        asked = [turn for turn in turns if turn.escalated]
        seconds = self._ask_target(asked) if asked else 0.0
        answers = [self._answer(turn, output.seconds, seconds) for turn in turns]
        return answers, output.seconds + seconds + host

    def _route(self, turn: _Turn, logits: Array) -> None:
        """Walk down the tree as far as the gate lets the slim verifier decide. logits: [n + 1, vocab]."""
        request, tree = turn.request, turn.request.tree
        children, node = tree.children(), -1
        if not children:
            turn.escalated = True
        elif self._top_k:
            turn.top = largest(logits, self._top_k)
        while below := children.get(node):
            prefix = Prefix(request.context, turn.above)
            row = logits[node + 1, :]
            choice = self._gate.decide(
                Law(row, request.sampler, prefix), [tree.tokens[child] for child in below]
            )
            if choice == TARGET:
                turn.escalated = True
                break
            if choice == OWN:
                own = request.sampler.choose(row, prefix)
                choice = next((i for i, child in enumerate(below) if tree.tokens[child] == own), OWN)
                if choice == OWN:
                    turn.own = own
                    break
            node = below[choice]
            turn.path.append(node)
        if turn.escalated:
            start, end = turn.handle.full.length, request.handle.length + request.count
            turn.unread = [*request.context[start:end], *turn.above]
            turn.rest, turn.nodes = _below(tree, node)

    def _ask_target(self, turns: Sequence[_Turn]) -> float:
        """Step the target on what these sequences have not read, and judge; return the seconds."""
        seconds = self._catch_up(turns)
        turns = [turn for turn in turns if turn.refused is None]
        if not turns:
            return seconds
        output = self._step([(turn, self._last_row(turn)) for turn in turns])
        for i, turn in enumerate(turns):
            request = turn.request
            if turn.refused is not None:
                continue
            path: tuple[int, ...] = ()
            if request.ends:
                logits = output.logits_of(i)
                logits = logits[logits.shape[0] - 1 - len(turn.rest) :, :]
                scores = TargetScores(turn.rest, logits, request.sampler, request.context, turn.above)
                turn.verdict = request.rule.accept(turn.rest, scores, request.sampler)
                path = turn.verdict.path
                if self._top_k and turn.top is None:
                    turn.top = largest(logits, self._top_k)
            read = len(turn.unread)
            self._model.full.commit(turn.handle.full, [*range(read), *(read + node for node in path)])
        return seconds + output.seconds

    def _catch_up(self, turns: Sequence[_Turn]) -> float:
        """Let the target read the beginning of a long backlog, and all of it before a tree with branches."""
        seconds = 0.0
        while True:
            behind = [turn for turn in turns if turn.refused is None and len(turn.unread) > self._fits(turn)]
            if not behind:
                return seconds
            rows = []
            for turn in behind:
                count = min(self._most, len(turn.unread) - 1)
                rows.append((turn, Row(turn.handle.full, Block.chain(turn.unread[:count]), logits="none")))
            seconds += self._step(rows).seconds
            for turn, row in rows:
                if turn.refused is None:
                    self._model.full.commit(turn.handle.full, range(len(row.block)))
                    del turn.unread[: len(row.block)]

    def _fits(self, turn: _Turn) -> int:
        """Return how many unread tokens may be in one step with the rest of the tree."""
        return max(1, self._most - len(turn.rest)) if turn.rest.is_chain else 1

    def _last_row(self, turn: _Turn) -> Row:
        tokens, rest, handle = turn.unread, turn.rest, turn.handle.full
        if not turn.request.ends:
            return Row(handle, Block.chain(tokens), logits="none")
        if not len(rest):
            return Row(handle, Block.chain(tokens), logits="last")
        chain = rest.is_chain
        return Row(
            handle, Block.chain([*tokens, *rest.tokens]) if chain else rest.rooted(tokens[0]).as_block()
        )

    def _step(self, rows: Sequence[tuple[_Turn, Row]]) -> StepOutput:
        """Step the target; a refused sequence's cache holds only committed tokens afterwards."""
        output = self._model.full.step([row for _, row in rows])
        for turn, _ in rows:
            turn.calls += 1
        for i, why in output.refused.items():
            turn = rows[i][0]
            turn.refused = why
            if turn.handle.backlog < 0:  # of a round that does not take place
                self._model.full.truncate(turn.handle.full, turn.handle.length)
        return output

    def _answer(self, turn: _Turn, slim_s: float, full_s: float) -> Verification | Refusal:
        """Commit to the slim verifier's cache, and return the result."""
        request, path = turn.request, turn.path
        if turn.refused is not None:
            return turn.refused
        tokens = [*turn.above]
        counts = TierCounts(slim_steps=1, accepted=len(path), slim_s=slim_s)
        if turn.escalated:
            counts = replace(counts, full_calls=turn.calls, full_s=full_s)
            if turn.verdict is not None:
                path = [*path, *(turn.nodes[node] for node in turn.verdict.path)]
                tokens += [*(turn.rest.tokens[node] for node in turn.verdict.path), turn.verdict.token]
                counts.escalated = len(tokens) - counts.accepted
        elif turn.own is not None:
            tokens.append(turn.own)
            counts.regenerated = 1
        else:
            counts.open_rounds = 1
        # The last token of a text is never read: it is the root of the next round.
        kept = path[: len(tokens) - 1] if tokens else path
        self._model.thin.commit(turn.handle.slim, [*range(request.count), *(node + 1 for node in kept)])
        return Verification(tuple(path), tuple(tokens), tiers=counts, top=turn.top)


def _slim_row(request: VerifyRequest) -> Row:
    return Row(request.handle.slim, request.block(), logits="all" if len(request.tree) else "none")


def _below(tree: TokenTree, node: int) -> tuple[TokenTree, list[int]]:
    """Return the part of a tree below a node (-1 = all of it), and the index of each of its nodes."""
    if node < 0:
        return tree, [*range(len(tree))]
    place = {node: -1}
    nodes: list[int] = []
    for i, parent in enumerate(tree.parents):
        if parent in place:
            place[i] = len(nodes)
            nodes.append(i)
    rest = TokenTree(
        tuple(tree.tokens[i] for i in nodes),
        tuple(place[tree.parents[i]] for i in nodes),
        [tree.probs[i] for i in nodes] if tree.probs else None,
        tree.replacement,
        sources=tuple(tree.sources[i] for i in nodes) if tree.sources else (),
    )
    return rest, nodes
