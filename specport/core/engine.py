"""The loop: draft, verify, accept, commit. Knows token ids only; text and devices are elsewhere.

It works on a list of sequences; one sequence is a list of one. In every round each sequence brings
one row: a chunk of its prompt while that is not in the cache yet, else its root token with the
drafted tree below. So sequences at different stages share a step (continuous batching).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from specport.core.metrics import Metrics
from specport.core.ports import (
    Array,
    CacheHandle,
    Drafter,
    DraftRequest,
    Model,
    Outcome,
    Plan,
    Policy,
    Row,
    top_k_of,
)
from specport.core.sampling.sampler import Sampler, SamplingParams
from specport.core.sampling.topk import largest
from specport.core.tree import TokenTree
from specport.core.verify.rules import AcceptanceRule, TargetScores, rule_for

FinishReason = Literal["stop", "length", "cancelled"]

# Prompt tokens a step: bounds the memory of a step and the time until a cancellation is seen.
PREFILL_CHUNK = 512
_keys = itertools.count()


@dataclass
class Generation:
    """One sequence being generated.

    tokens:  committed token ids, prompt first; the last one is the root token.
    on_token: called with each output token and its source, in order; True ends the text behind it.
    """

    tokens: list[int]
    handle: CacheHandle
    params: SamplingParams
    policy: Policy
    max_new_tokens: int
    eos_ids: frozenset[int] = frozenset()
    on_token: Callable[[int, str], bool] | None = None
    rule: AcceptanceRule | None = None  # None: chosen from the sampling parameters
    key: int = field(default_factory=lambda: next(_keys))
    metrics: Metrics = field(default_factory=Metrics)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.params)
        self.rule = self.rule or rule_for(self.params)
        self.num_prompt_tokens = len(self.tokens)
        self.metrics.num_prompt_tokens = len(self.tokens)
        self.metrics.num_cached_tokens = self.handle.length
        self._started = time.perf_counter()
        self._cancelled = threading.Event()

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def prefilling(self) -> bool:
        return len(self.tokens) - self.handle.length > 1

    def cancel(self) -> None:
        """Ask for the end of this sequence before its next round. Safe from any thread."""
        self._cancelled.set()

    def append(self, tokens: Sequence[int], sources: Sequence[str]) -> int:
        """Take committed tokens up to the end of the text; return how many were taken."""
        now = time.perf_counter()
        if not self.num_output_tokens:
            self.metrics.ttft_s = now - self._started
        taken = 0
        for token, source in zip(tokens, sources, strict=True):
            self.tokens.append(token)
            taken += 1
            # The watcher goes first: it must see every token, also the one that ends the text.
            stop = self.on_token is not None and self.on_token(token, source)
            if stop or token in self.eos_ids:
                self.finish_reason = "stop"
                break
            if self.num_output_tokens >= self.max_new_tokens:
                self.finish_reason = "length"
                break
        self.metrics.num_output_tokens = self.num_output_tokens
        self.metrics.decode_s = now - self._started - self.metrics.ttft_s
        return taken

    def check_cancelled(self) -> bool:
        if self._cancelled.is_set() and self.finish_reason is None:
            self.finish_reason = "cancelled"
        return self.finish_reason is not None


@dataclass(frozen=True)
class Commit:
    """Output tokens of one sequence in one round.

    sources: who proposed each token; "" where the target itself chose it.
    """

    generation: Generation
    tokens: tuple[int, ...]
    sources: tuple[str, ...]


class Engine:
    """Runs generations on one target with one drafter.

    Rounds are serialised by a lock, so several threads may each run their own generations on the
    same engine; between rounds nothing of a step's output is kept.
    """

    def __init__(self, model: Model, drafter: Drafter | None = None) -> None:
        self.model = model
        self.drafter = drafter
        # Reentrant: the garbage collector may close a dropped stream in the middle of a round.
        self._lock = threading.RLock()

    def open(self, capacity: int = 0) -> CacheHandle:
        """A new, empty cache on the target."""
        with self._lock:
            return self.model.open(capacity)

    def rewind(self, handle: CacheHandle, length: int) -> None:
        """Forget a cache's tokens from position `length` on."""
        with self._lock:
            self.model.truncate(handle, length)

    def close(self, handle: CacheHandle) -> None:
        with self._lock:
            self.model.close(handle)

    def run(self, generations: Sequence[Generation]) -> Generator[Commit, None, None]:
        """Yield tokens as they are committed until every generation has finished.

        The caches stay open, so that a chat can go on; what drafters hold is freed, also when the
        iterator is dropped early.
        """
        try:
            while active := [g for g in generations if not g.check_cancelled()]:
                with self._lock:
                    commits = self._round(active)
                yield from commits
        finally:
            with self._lock:
                for generation in generations:
                    self._finish(generation)

    def _finish(self, generation: Generation) -> None:
        if self.drafter:
            self.drafter.forget(generation.key)
        # A text that ended inside an accepted path leaves tokens in the cache that it does not have, or its
        # last one, which plain decoding would not have read: what follows must be read alike.
        if generation.handle.length >= len(generation.tokens):
            self.model.truncate(generation.handle, len(generation.tokens) - 1)

    def _round(self, active: list[Generation]) -> list[Commit]:
        width = len(active) if self.model.capabilities.batch else 1
        commits: list[Commit] = []
        for start in range(0, len(active), width):
            commits += self._step(active[start : start + width])
        return commits

    def _step(self, group: list[Generation]) -> list[Commit]:
        trees, plans, draft_s = self._draft(group)
        rows = [self._row(g, tree) for g, tree in zip(group, trees, strict=True)]
        output = self.model.step(rows)
        commits = []
        total = sum(len(row.tree) for row in rows)
        outcomes = []
        top_k = top_k_of(self.drafter)
        for i, (g, row, tree, plan) in enumerate(zip(group, rows, trees, plans, strict=True)):
            logits = output.logits[output.offsets[i] : output.offsets[i + 1], :]
            if g.prefilling:
                commits += self._prefilled(g, row, logits)
                continue
            g.metrics.draft_s += draft_s
            g.metrics.verify_s += output.seconds
            context = g.handle.length
            commit, path = self._accept(g, tree, logits)
            commits.append(commit)
            outcome = Outcome(
                g.key, tree, path, plan, output.seconds, context, total - len(row.tree),
                root=row.tree.tokens[0], top=largest(logits, top_k) if top_k else None,
            )  # fmt: skip
            outcomes.append(outcome)
            g.metrics.record(outcome)
            if len(tree):
                g.policy.observe(outcome)
        if self.drafter and outcomes:
            self.drafter.observe(outcomes)
        return commits

    def _draft(self, group: list[Generation]) -> tuple[list[TokenTree], list[Plan], float]:
        """A tree for each sequence, empty where it is still prefilling or nothing is to be drafted."""
        plans = [Plan(0) if g.prefilling else self._plan(g) for g in group]
        trees = [TokenTree()] * len(group)
        wanted = [i for i, plan in enumerate(plans) if plan.depth > 0]
        if self.drafter is None or not wanted:
            return trees, plans, 0.0
        began = time.perf_counter()
        requests = [self._request(group[i], plans[i]) for i in wanted]
        for i, tree in zip(wanted, self.drafter.propose(requests), strict=True):
            trees[i] = tree
        return trees, plans, time.perf_counter() - began

    @staticmethod
    def _request(g: Generation, plan: Plan) -> DraftRequest:
        left = g.max_new_tokens - g.num_output_tokens
        return DraftRequest(g.key, g.tokens, plan, g.sampler, left, g.handle)

    def _plan(self, g: Generation) -> Plan:
        """The policy's plan, cut to what can still be committed and to the room in the cache."""
        plan = g.policy.plan()
        # A step commits one token more than it accepts, so the last one needs no draft.
        depth = min(plan.depth, g.max_new_tokens - g.num_output_tokens - 1)
        plan = replace(plan, depth=depth)
        room = self.model.max_context - g.handle.length - 1
        room = min(room, max(self.model.capabilities.buckets, default=room + 1) - 1)
        if plan.max_nodes > room:
            plan = replace(plan, depth=min(depth, room), branches=())
        if plan.branches and not self.model.capabilities.tree:
            plan = replace(plan, branches=())
        return plan

    @staticmethod
    def _row(g: Generation, tree: TokenTree) -> Row:
        if not g.prefilling:
            return Row(g.handle, tree.rooted(g.tokens[-1]))
        start = g.handle.length
        return Row(g.handle, TokenTree.chain(g.tokens[start : start + PREFILL_CHUNK]), logits="last")

    def _prefilled(self, g: Generation, row: Row, logits: Array) -> list[Commit]:
        self.model.commit(g.handle, range(len(row.tree)))
        if g.handle.length < len(g.tokens):
            return []
        token = g.sampler.choose(logits[0, :], g.tokens)
        g.append([token], [""])
        return [Commit(g, (token,), ("",))]

    def _accept(self, g: Generation, tree: TokenTree, logits: Array) -> tuple[Commit, tuple[int, ...]]:
        """What the step commits to the text, and the accepted path."""
        assert g.rule is not None  # set in __post_init__
        verdict = g.rule.accept(tree, TargetScores(tree, logits, g.sampler, g.tokens), g.sampler)
        self.model.commit(g.handle, [0, *(node + 1 for node in verdict.path)])
        tokens = [*(tree.tokens[node] for node in verdict.path), verdict.token]
        sources = [*(tree.sources[node] if tree.sources else "" for node in verdict.path), ""]
        taken = g.append(tokens, sources)
        return Commit(g, tuple(tokens[:taken]), tuple(sources[:taken])), verdict.path
