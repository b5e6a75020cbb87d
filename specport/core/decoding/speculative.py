"""One round of speculative decoding: draft, verify, append. No scheduling and no threads."""

from __future__ import annotations

import time
from collections.abc import Sequence

from specport.core.decoding.work import Round, Work
from specport.core.metrics import StepCounts
from specport.core.ports import DraftRequest, Model, Needs, Outcome, Plan, Policy, Prefilled
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.core.verify.verifier import TargetVerifier, Verification, Verifier, VerifyRequest


class SpeculativeDecoding:
    """Draft with a policy and verify with the target; without a policy, decode plainly."""

    def __init__(self, model: Model, policy: Policy | None = None, verifier: Verifier | None = None) -> None:
        self.policy = policy
        self._model = model
        self._verifier = verifier or TargetVerifier(model, policy.needs if policy else Needs())
        self._widest = max(model.capabilities.buckets, default=None)

    def forget(self, key: int) -> None:
        """Free what drafters hold for a sequence."""
        if self.policy:
            self.policy.forget(key)

    def round(self, work: Sequence[Work], done: Round) -> None:
        """Run a round over these sequences, in one step where the model takes batches.

        done: receives the results, also those before an exception.
        """
        width = len(work) if self._model.capabilities.batch else 1
        for start in range(0, len(work), width):
            self._step(work[start : start + width], done)

    def _step(self, work: Sequence[Work], done: Round) -> None:
        before = [w.generation.sampler.state() if self.policy else None for w in work]
        trees, draft_s = self._draft(work)
        decoding = [w.generation.decoding for w in work]
        requests = [
            VerifyRequest(w.generation.handle, w.generation.tokens, w.count, tree, w.generation.acceptance,
                          w.generation.sampler, w.generation.logprobs, w.generation.key)
            for w, tree in zip(work, trees, strict=True)
        ]  # fmt: skip
        starts = [request.handle.length for request in requests]
        answers, seconds = self._verifier.verify(requests)
        narrowest = self._model.capabilities.min_width
        widths = [max(w.count + len(tree), narrowest) for w, tree in zip(work, trees, strict=True)]
        total = sum(n for n, answer in zip(widths, answers, strict=True) if isinstance(answer, Verification))
        outcomes: list[Outcome] = []
        events: list[Prefilled] = []
        for i, (w, tree, answer) in enumerate(zip(work, trees, answers, strict=True)):
            g, start = w.generation, starts[i]
            counts: StepCounts | None = None
            if not isinstance(answer, Verification):
                # It drafts again when there is room, with the same random numbers: a seed fixes the text.
                g.sampler.restore(before[i])
                done.refused.append((g, answer))
                continue
            if decoding[i]:
                outcome = Outcome(
                    g.key, tree, answer.path, seconds, start, total - widths[i],
                    root=g.tokens[start], top=answer.top, hidden=answer.hidden,
                )  # fmt: skip
                outcomes.append(outcome)
                g.metrics.draft_s += draft_s
                g.metrics.verify_s += seconds
                counts = g.metrics.record(outcome, answer.tiers)
            else:
                events.append(Prefilled(g.key, start, g.tokens[start : start + w.count], answer.hidden))
            if answer.tokens:
                sources = [tree.sources[n] if tree.sources else "" for n in answer.path]
                sources += [""] * (len(answer.tokens) - len(sources))
                done.commits.append(g.append(answer.tokens, sources, answer.logprobs, counts))
        if self.policy and events:
            self.policy.prefilled(events)
        if self.policy and outcomes:
            self.policy.observe(outcomes)

    def _draft(self, work: Sequence[Work]) -> tuple[list[TokenTree], float]:
        """Return a tree for each sequence, empty during prefill, and the seconds of drafting."""
        trees = [TokenTree()] * len(work)
        if self.policy is None:
            return trees, 0.0
        prefill = sum(w.count for w in work if not w.generation.decoding)
        bounds = [self._bounds(w.generation) if w.draft else (0, 0) for w in work]
        asked = [i for i, (depth, _) in enumerate(bounds) if depth > 0]
        if not asked:
            return trees, 0.0
        requests = []
        for i in asked:
            g, (depth, nodes) = work[i].generation, bounds[i]
            requests.append(
                DraftRequest(
                    g.key,
                    g.tokens,
                    Plan(depth),
                    g.draft_sampler,
                    nodes,
                    g.num_left,
                    g.handle,
                    prefill,
                    g.metrics.drafting,
                    g.conditioning,
                )
            )
        began = time.perf_counter()
        for i, tree in zip(asked, self.policy.draft(requests), strict=True):
            trees[i] = tree
        return trees, time.perf_counter() - began

    def _bounds(self, g: Generation) -> tuple[int, int]:
        """Return the maximum depth and number of nodes of a tree that still fits text and context."""
        if not g.decoding:
            return 0, 0
        assert g.handle is not None  # it was admitted
        nodes = self._model.max_context - g.handle.length - 1
        if self._widest is not None:
            nodes = min(nodes, self._widest - 1)
        # A step commits one token more than it accepts, so the last token needs no draft.
        depth = min(g.num_left - 1, nodes)
        if g.max_draft_tokens is not None:
            depth = min(depth, g.max_draft_tokens)
        return depth, nodes
