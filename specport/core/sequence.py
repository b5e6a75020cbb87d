"""A sequence being generated: its tokens, cache, random stream, limits, status and counters."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from specport.core.metrics import Metrics, StepCounts
from specport.core.ports import CacheHandle
from specport.core.sampling.constraint import Constraint
from specport.core.sampling.logprobs import TokenLogprob
from specport.core.sampling.output_processors import output_processors
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import LogitsProcessor
from specport.core.sampling.sampler import Sampler
from specport.core.verify.rules import AcceptanceRule, Matching, rule_for

FinishReason = Literal["stop", "length", "cancelled"]
_keys = itertools.count()


@dataclass(eq=False)
class KeptCache:
    """Hold a cache between the turns of a conversation.

    handle:   None while a sequence uses it, and after the scheduler has freed its memory.
    tokens:   ids of the tokens in the cache.
    released: whether the cache is no longer needed.
    """

    handle: CacheHandle | None = None
    tokens: list[int] = field(default_factory=list)
    released: bool = False


@dataclass(frozen=True)
class Commit:
    """Hold the output tokens of one sequence in one round.

    sources: name of the drafter that proposed each token; "" where the target itself chose it.
    step:    what was drafted and accepted; None where the prompt was read.
    fault:   exception that `Generation.on_token` raised at the last of these tokens; it ended the text.
    """

    generation: Generation
    tokens: tuple[int, ...]
    sources: tuple[str, ...]
    step: StepCounts | None = None
    fault: Exception | None = None


@dataclass(eq=False)
class Generation:
    """Hold one sequence while it is generated.

    tokens:   committed token ids, prompt first; the last one is the root token.
    on_token: called with each output token and its source, in order; returns True to end the text after the
              token. Called by the thread that steps the engine, which may not be the one that added the
              sequence. An exception ends the text; `Engine.run` raises it where the sequence was added.
    processors: logits processors of target and draft, in addition to those that `params` imply.
    constraint: which tokens may follow; it ends the text where it is complete. None = all.
    rule:     acceptance rule; None = chosen by the sampling parameters.
    max_draft_tokens: maximum path length of a draft; None = the policy's choice, 0 = plain decoding.
    logprobs: number of likeliest tokens whose log-probabilities to keep beside each output token's own, under
              the target's own logits (before processors and temperature); None = none are kept.
    kept:     cache to start from and to leave behind; None = an empty cache, freed at the end.
    conditioning: what target and draft are opened with (`Model.open`); None = nothing.

    handle is None until the scheduler admits the sequence, and while the sequence is preempted.
    """

    tokens: list[int]
    params: SamplingParams
    max_new_tokens: int
    eos_ids: frozenset[int] = frozenset()
    on_token: Callable[[int, str], bool] | None = None
    processors: Sequence[LogitsProcessor] = ()
    constraint: Constraint | None = None
    rule: AcceptanceRule | None = None
    max_draft_tokens: int | None = None
    logprobs: int | None = None
    kept: KeptCache | None = None
    conditioning: Any = None
    key: int = field(default_factory=lambda: next(_keys))
    metrics: Metrics = field(default_factory=Metrics)
    finish_reason: FinishReason | None = None
    handle: CacheHandle | None = field(default=None, init=False)
    shared: bool = field(default=False, init=False)  # the prefix cache has its prompt
    token_logprobs: list[TokenLogprob] = field(default_factory=list, init=False)
    inbox: deque[Commit] = field(default_factory=deque, init=False)  # commits that were not fetched yet

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens)
        implied = output_processors(self.params, self.num_prompt_tokens, self.eos_ids)
        processors = (*implied, *self.processors)
        self.sampler = Sampler(self.params, processors, self.constraint)
        self.acceptance = self.rule or rule_for(self.params)
        self.draft_sampler = self.sampler
        if isinstance(self.acceptance, Matching):
            self.draft_sampler = Sampler(replace(self.params, temperature=0.0), processors, self.constraint)
        self.metrics.num_prompt_tokens = len(self.tokens)
        self._started = time.perf_counter()
        self._cancelled = False

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_left(self) -> int:
        """Return how many tokens may still be generated."""
        return self.max_new_tokens - self.num_output_tokens

    @property
    def num_unread(self) -> int:
        """Return how many committed tokens are not in the cache: 1 while decoding, more during prefill."""
        return len(self.tokens) - (self.handle.length if self.handle is not None else 0)

    @property
    def known(self) -> list[int]:
        """Return the tokens that a cache may hold before the sequence is admitted.

        The last one is always read: its logits give the next token. After a preemption the one before it is
        read too, apart from the root token, as the scheduler does.
        """
        return self.tokens[: len(self.tokens) - 1 - (self.num_output_tokens > 0)]

    @property
    def decoding(self) -> bool:
        """Return whether prefill is over: there is output, and only the root token is unread."""
        return self.num_unread == 1 and self.num_output_tokens > 0

    def cancel(self) -> None:
        """Ask for the end of this sequence before its next round.

        Takes no lock: safe in any thread, in a signal handler and in the garbage collector.
        """
        self._cancelled = True

    @property
    def ended(self) -> bool:
        """Return whether the sequence has finished or was cancelled."""
        return self.finish_reason is not None or self._cancelled

    def admitted(self, handle: CacheHandle) -> None:
        """Take a cache, which may already hold a prefix of the tokens."""
        self.handle = handle
        if not self.num_output_tokens:
            self.metrics.num_cached_tokens = handle.length
            self.metrics.queue_s = time.perf_counter() - self._started

    def _complete(self) -> bool:
        return self.constraint is not None and self.constraint.complete(self.tokens)

    def append(
        self,
        tokens: Sequence[int],
        sources: Sequence[str],
        logprobs: Sequence[TokenLogprob] = (),
        step: StepCounts | None = None,
    ) -> Commit:
        """Append committed tokens up to the end of the text; return those that were appended."""
        now = time.perf_counter()
        if not self.num_output_tokens:
            self.metrics.ttft_s = now - self._started
        taken = 0
        fault: Exception | None = None
        for token, source in zip(tokens, sources, strict=True):
            self.tokens.append(token)
            self.token_logprobs += logprobs[taken : taken + 1]  # before its text: who streams reads both
            taken += 1
            # `on_token` is called first: it must see every token, also the one that ends the text.
            try:
                stop = self.on_token is not None and self.on_token(token, source)
                stop = stop or token in self.eos_ids or self._complete()
            except Exception as error:  # user code or a constraint: it must not end the others' round
                fault, self.finish_reason = error, "cancelled"
                break
            if stop:
                self.finish_reason = "stop"
                break
            if self.num_left <= 0:
                self.finish_reason = "length"
                break
        self.metrics.num_output_tokens = self.num_output_tokens
        self.metrics.decode_s = now - self._started - self.metrics.ttft_s
        return Commit(self, tuple(tokens[:taken]), tuple(sources[:taken]), step, fault)
