"""The verifier: step the target on trees, judge them, and commit what was accepted to the target's cache.

The standard verifier steps the target once on all rows, prompts and trees, and applies each sequence's
acceptance rule. `tiered.py` has another one behind the same port, with a cheaper tier before the target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specport.core.arrays import Array
from specport.core.ports import Block, Model, Needs, Refusal, Row, TierCounts, Wanted
from specport.core.sampling.logprobs import TokenLogprob, token_logprob
from specport.core.sampling.sampler import Sampler
from specport.core.sampling.topk import largest
from specport.core.tree import TokenTree
from specport.core.verify.rules import AcceptanceRule, Verdict
from specport.core.verify.scores import TargetScores


@dataclass(frozen=True)
class VerifyRequest:
    """Hold what the target reads of one sequence in a round.

    handle:  the sequence in the target's cache.
    context: all committed token ids; those that are not in the cache are unread.
    count:   number of unread tokens to read now. If these are all, the next token is chosen.
    tree:    drafted below the last committed token; empty where count is not 1.
    logprobs: number of likeliest tokens to return log-probabilities of, beside each output token's own;
              None = no log-probabilities.
    key:     identifies the sequence (`Generation.key`).
    """

    handle: Any
    context: Sequence[int]
    count: int
    tree: TokenTree
    rule: AcceptanceRule
    sampler: Sampler
    logprobs: int | None = None
    key: int = -1

    @property
    def ends(self) -> bool:
        """Return whether the row reaches the end of the context, so that a token is chosen."""
        return int(self.handle.length) + self.count == len(self.context)

    def block(self) -> Block:
        """Return the tokens to read: a part of the context, or the root token with its tree."""
        start = self.handle.length
        unread = self.context[start : start + self.count]
        return self.tree.rooted(unread[0]).as_block() if len(self.tree) else Block.chain(unread)


@dataclass(frozen=True)
class Verification:
    """Hold the result of a round for one sequence.

    path:     accepted nodes of the tree, from the root's child down.
    tokens:   tokens to append to the text: the path's tokens, then the correction or bonus token; () where
              the row ended inside a prompt.
    logprobs: [tokens] under the target's raw logits, before processors and temperature; () where not asked
              for.
    top, hidden: as in `Outcome`; for a prompt, hidden states of the tokens that were read.
    """

    path: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    tiers: TierCounts | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    top: NDArray[np.int64] | None = field(default=None, compare=False)
    hidden: Mapping[int, Array] = field(default_factory=dict, compare=False)


class Verifier(Protocol):
    """Step the target, judge trees, and commit accepted tokens to the target's cache."""

    def verify(self, requests: Sequence[VerifyRequest]) -> tuple[list[Verification | Refusal], float]:
        """Return one answer per request, in order, and the seconds of the step and of choosing its tokens.

        A refused request leaves its sequence unchanged.
        """
        ...


Watcher = Callable[[VerifyRequest, Verdict, Array], None]


class TargetVerifier:
    """Verify with one step of the target and each sequence's acceptance rule.

    needs: hidden states and top-k to return with each answer.
    watch: called with each verdict and its logits [n + 1, vocab], before anything is committed.
    """

    def __init__(self, model: Model, needs: Needs = Needs(), watch: Watcher | None = None) -> None:  # noqa: B008
        self._model = model
        self._needs = needs
        self._watch = watch

    def verify(self, requests: Sequence[VerifyRequest]) -> tuple[list[Verification | Refusal], float]:
        output = self._model.step([self._row(request) for request in requests])
        # What is chosen on the host is part of what a drafted token costs: for a small model a good part.
        began = time.perf_counter()
        answers: list[Verification | Refusal] = []
        for i, request in enumerate(requests):
            if i in output.refused:
                answers.append(output.refused[i])
                continue
            answer = self._judged(request, output.logits_of(i)) if request.ends else self._read(request)
            answers.append(replace(answer, hidden=output.hidden_of(i)) if self._needs.hidden else answer)
        chosen = time.perf_counter() - began if output.seconds else 0.0  # 0 = the model times no steps
        return answers, output.seconds + chosen

    def _row(self, request: VerifyRequest) -> Row:
        hidden: Wanted = "all" if self._needs.hidden else "none"
        if not request.ends:
            return Row(request.handle, request.block(), logits="none", hidden=hidden)
        wanted: Wanted = "all" if request.count == 1 else "last"
        return Row(request.handle, request.block(), logits=wanted, hidden=hidden)

    def _read(self, request: VerifyRequest) -> Verification:
        self._model.commit(request.handle, range(request.count))
        return Verification()

    def _judged(self, request: VerifyRequest, logits: Array) -> Verification:
        tree = request.tree
        scores = TargetScores(tree, logits, request.sampler, request.context)
        verdict = request.rule.accept(tree, scores, request.sampler)
        if self._watch is not None:
            self._watch(request, verdict, logits)
        top = largest(logits, self._needs.top_k) if self._needs.top_k else None
        tokens = (*(tree.tokens[node] for node in verdict.path), verdict.token)
        logprobs: tuple[TokenLogprob, ...] = ()
        if request.logprobs is not None:
            rows = (0, *(node + 1 for node in verdict.path))  # behind the root, behind each accepted token
            logprobs = tuple(
                token_logprob(logits[row, :], token, request.logprobs)
                for row, token in zip(rows, tokens, strict=True)
            )
        self._model.commit(request.handle, [*range(request.count), *(n + 1 for n in verdict.path)])
        return Verification(verdict.path, tokens, logprobs=logprobs, top=top)
