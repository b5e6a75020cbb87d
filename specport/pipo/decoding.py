"""One round of pair-in, pair-out decoding. Lossy: nothing verifies the second token of a pair.

A step reads the last pair, chooses the first token of the next one, and keeps a second token where the
confidence head is sure enough. The next pair is otherwise that token with PAD. Source: PIPO (arXiv
2605.27255); unlike the released server, a second token is proposed behind the prompt, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from weakref import WeakKeyDictionary

from specport.core.arrays import Array
from specport.core.decoding.work import Round, Work
from specport.core.metrics import StepCounts
from specport.core.ports import Refusal
from specport.core.sampling.logprobs import TokenLogprob, token_logprob
from specport.core.sequence import Generation
from specport.models.kinds.pipo import widths_of
from specport.pipo.model import PairModel, PairRow, PairSequence

METHOD = "pipo"
SECOND = "second"  # who proposed a second token, for --show-drafts


class PairDecoding:
    """Decode sequences of a pair model (`core.decoding.Decoding`).

    threshold: confidence from which a second token is kept; above 1 none is.
    """

    def __init__(self, model: PairModel, threshold: float) -> None:
        self._model, self.threshold = model, threshold
        # The pairs in which texts were read, which outlive their caches: a text that was preempted is read
        # again in the same ones, as it would go on otherwise in others.
        self._widths: WeakKeyDictionary[Generation, list[int]] = WeakKeyDictionary()

    def forget(self, key: int) -> None:
        """Do nothing: what is held goes with the sequence."""

    def round(self, work: Sequence[Work], done: Round) -> None:
        """Run a round over these sequences, in one step where the model takes batches."""
        width = len(work) if self._model.capabilities.batch else 1
        for start in range(0, len(work), width):
            self._step(work[start : start + width], done)

    def _step(self, work: Sequence[Work], done: Round) -> None:
        rows = [self._row(w) for w in work]
        answers = self._model.read(rows)
        for w, row, answer in zip(work, rows, answers, strict=True):
            ends, handle = row.ends, row.handle
            generation = w.generation
            if isinstance(answer, str):
                done.refused.append((generation, cast(Refusal, answer)))
                continue
            known = self._widths.setdefault(generation, [])
            known += handle.widths[len(known) :]
            if generation.num_output_tokens:
                generation.metrics.num_steps += 1
                generation.metrics.verify_s += self._model.seconds
            if ends and answer is not None:
                self._extend(generation, handle, answer, done)

    def _row(self, work: Work) -> PairRow:
        """Return what to read of a sequence."""
        generation = work.generation
        handle = cast(PairSequence, generation.handle)
        again = self._widths.get(generation, [])[len(handle.widths) :]
        # What was not read before is left for a round of its own, as in the lost round.
        widths = _up_to(again, work.count) if again else widths_of(_count(work))
        unread = generation.tokens[handle.length : handle.length + sum(widths)]
        return PairRow(handle, unread, len(unread) == generation.num_unread, widths)

    def _extend(self, generation: Generation, handle: PairSequence, logits: Array, done: Round) -> None:
        """Append the next token, and the one behind it where the model is sure of it."""
        first = generation.sampler.choose(logits, generation.tokens)
        logprobs = _logprobs(generation, logits, first)
        done.commits.append(generation.append((first,), ("",), logprobs))
        if generation.ended or self.threshold > 1.0:
            return
        second = self._model.second(handle, first)
        if second is None:
            return
        metrics = generation.metrics
        kept = second.confidence >= self.threshold
        metrics.num_drafts += 1
        metrics.num_draft_tokens += 1
        metrics.num_accepted_tokens += kept
        metrics.draft_s += second.seconds
        if kept:
            token = generation.sampler.choose(second.logits, generation.tokens)
            counts = StepCounts({SECOND: 1}, {SECOND: 1})
            logprobs = _logprobs(generation, second.logits, token)
            done.commits.append(generation.append((token,), (SECOND,), logprobs, counts))


def _count(work: Work) -> int:
    """Return how many tokens to read: all where only a pair is left, else an even number."""
    unread = work.generation.num_unread
    if unread <= 2 or unread - work.count <= 1:
        return unread
    return max(2, work.count - work.count % 2)


def _up_to(widths: Sequence[int], count: int) -> list[int]:
    """Return the first of these pairs, at least one, that have no more tokens than `count`."""
    found: list[int] = []
    for width in widths:
        if found and sum(found) + width > count:
            break
        found.append(width)
    return found


def _logprobs(generation: Generation, logits: Array, token: int) -> tuple[TokenLogprob, ...]:
    if generation.logprobs is None:
        return ()
    return (token_logprob(logits, token, generation.logprobs),)
