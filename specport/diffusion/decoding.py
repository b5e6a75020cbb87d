"""Ways to decode one text with a diffusion model: natively, and with a draft (SimSD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specport.core.sampling.sampler import Sampler
from specport.diffusion.acceptance import Verdict, discarded, greedy_match, mrs
from specport.diffusion.context import Context
from specport.diffusion.denoise import denoise, without_mask
from specport.diffusion.layout import verifying
from specport.diffusion.options import DiffusionOptions
from specport.diffusion.ports import DiffusionModel


@dataclass(frozen=True)
class Written:
    """Hold the tokens of one round.

    tokens:  committed ones. accepted: how many of them, from the first on, the draft proposed.
    drafted: tokens that the draft proposed; empty without one.
    steps:   of the target.
    draft_s, verify_s: seconds in the draft's and in the target's runtime.
    discarded: tokens that depend on the draft, see `acceptance.discarded`.
    """

    tokens: tuple[int, ...]
    accepted: int = 0
    drafted: tuple[int, ...] = ()
    steps: int = 1
    draft_s: float = 0.0
    verify_s: float = 0.0
    discarded: int = 0


class Decoder(Protocol):
    """Write one text, round by round. Not thread-safe."""

    def round(self, room: int) -> Written:
        """Write on; at most `room` tokens. Raises ContextFull."""
        ...

    def close(self) -> None:
        """Free the caches. Closing twice is harmless."""
        ...


class Native:
    """Denoise one block a round with the model alone.

    Blocks are counted from position 0, so the first one begins with what the prompt has of it. A model with
    the context "full" knows no blocks: they begin behind the prompt.
    cached: whether committed text stays in the cache (`Context`).
    """

    def __init__(
        self,
        model: DiffusionModel,
        prompt: Sequence[int],
        sampler: Sampler,
        options: DiffusionOptions,
        cached: bool = True,
    ) -> None:
        self._length = options.block_length or model.facts.block_length
        self._sampler, self._options = sampler, options
        self._context = Context(model, cached)
        self._known = self._context.start(prompt, model.facts.context != "full", self._length)

    def round(self, room: int) -> Written:
        context, known = self._context, self._known
        steps, seconds = context.num_steps, context.seconds
        length = min(self._length, len(known) + room)
        block = denoise(context, length, self._options, self._sampler, known)
        context.extend(block.tokens)
        self._known = []
        return Written(
            tuple(block.tokens[len(known) :]),
            steps=context.num_steps - steps,
            verify_s=context.seconds - seconds,
        )

    def close(self) -> None:
        self._context.close()


class SimSD:
    """Draft a block with a smaller diffusion model, and judge it in one step of the target.

    Cui et al., arXiv 2606.02544. `options.order` decides what a round commits:

    "confidence", as published: the block ends behind the first rejected token, and the next one begins there
    ("truncate"). The text depends on the draft, by where blocks begin, by the order of times, and by drafted
    tokens that a slot attends to and that are discarded.

    "position": the next round goes on in the same block, whose tokens are revealed from left to right. With a
    layout without leak each token then depends on the tokens before it alone: `greedy_match` gives the text
    that the target gives without a draft (draft None), and `mrs` its law.

    draft: None = no draft: one token a step, under the same layout; for "position" only.
    """

    def __init__(
        self,
        target: DiffusionModel,
        draft: DiffusionModel | None,
        prompt: Sequence[int],
        sampler: Sampler,
        options: DiffusionOptions,
    ) -> None:
        if draft is None and options.order != "position":
            raise ValueError("without a draft, tokens are revealed by position")
        self._length = options.block_length or target.facts.block_length
        self._mask_id = target.facts.mask_id
        self._sampler, self._options = sampler, options
        self._goes_on = options.order == "position"
        self._target = Context(target)
        # Models of one family may pad their vocabularies to other widths.
        self._draft = Context(draft, vocab=target.model.vocab_size) if draft is not None else None
        for context in self._contexts:
            self._known = context.start(prompt, self._goes_on, self._length)

    @property
    def _contexts(self) -> list[Context]:
        return [self._target, *([self._draft] if self._draft else [])]

    def round(self, room: int) -> Written:
        target, draft, known = self._target, self._draft, self._known
        first, length = len(known), min(self._length, len(known) + room)
        before = (target.num_steps, target.seconds, draft.seconds if draft else 0.0)
        if draft is not None:
            block = denoise(draft, length, self._options, self._sampler, known)
            tokens, laws = block.tokens, block.laws[first:]
            times = [*range(length)] if self._goes_on else block.times
            end = length
        else:  # the masks behind the judged position are there as with a draft
            tokens, laws, times, end = (
                [*known, *[self._mask_id] * (length - first)],
                [None],
                [*range(length)],
                first + 1,
            )
        layout = verifying(self._options.layout, tokens, times, self._mask_id, first)
        rows = [layout.slots[place] for place in range(first, end)]
        logits = without_mask(target.step(layout.block), rows, self._mask_id)
        drafted = tuple(tokens[first:end])
        if self._sampler.params.greedy:
            verdict = greedy_match(drafted, logits)
        elif draft is None:
            verdict = Verdict(0, self._sampler.draw(self._sampler.distribution(logits[0], ())))
        else:
            verdict = mrs(drafted, logits, laws, self._sampler)
        new = (*drafted[: verdict.accepted], *([verdict.token] if verdict.token is not None else []))
        self._take(new, length)
        return Written(
            new,
            verdict.accepted,
            drafted if draft else (),
            target.num_steps - before[0],
            draft.seconds - before[2] if draft else 0.0,
            target.seconds - before[1],
            discarded(times, first, first + len(new), verdict.token is not None),
        )

    def _take(self, new: Sequence[int], length: int) -> None:
        """Commit tokens: as a block of their own, or to the block that goes on."""
        done = [*self._known, *new]
        if self._goes_on and len(done) < length:
            self._known = done
            return
        self._known = []
        for context in self._contexts:
            context.extend(done)

    def close(self) -> None:
        for context in self._contexts:
            context.close()
