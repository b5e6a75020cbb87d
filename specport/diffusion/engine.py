"""The engine of diffusion models: texts of any number of threads, written round by round."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specport.core.decoding.rounds import Rounds
from specport.core.ports import Outcome
from specport.core.sampling.sampler import Sampler
from specport.core.sequence import Commit, Generation, KeptCache
from specport.core.tree import TokenTree
from specport.diffusion.decoding import Decoder, Native, SimSD, Written
from specport.diffusion.options import DiffusionOptions
from specport.diffusion.ports import DiffusionModel
from specport.errors import ContextFull, DeviceError, InvalidInput

# Makes the decoder of one text: prompt, sampler.
Start = Callable[[Sequence[int], Sampler], Decoder]


@dataclass(frozen=True)
class DraftName:
    """Name the draft of an engine."""

    name: str


class DiffusionEngine(Rounds):
    """Run generations on a diffusion model: a block of each in a round, one after the other.

    draft: smaller model that drafts blocks; None = the target denoises them alone.
    start: makes the decoder of a text; None = as the options say, with a cache.

    A text whose round was interrupted is taken up again from its tokens. One that finds no room waits until
    the others have ended. Where it has all the memory to itself, it ends: as one cut at the limit of its
    length, or, without any output, with ContextFull.
    """

    def __init__(
        self,
        target: DiffusionModel,
        options: DiffusionOptions,
        draft: DiffusionModel | None = None,
        draft_name: str = "draft",
        start: Start | None = None,
    ) -> None:
        super().__init__(target.model, DraftName(draft_name) if draft is not None else None)
        self._target, self._draft, self._options = target, draft, options
        self._start = start or self._decoder
        self._lock = threading.Lock()  # held through a step
        # Appending takes no lock: the garbage collector may append at any time.
        self._added: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._decoders: dict[int, Decoder] = {}  # by the generation's key
        self._waiting: set[int] = set()  # keys of those that found no room since one ended
        self._room = min(m.model.max_context for m in (target, draft) if m is not None)

    def check(self, generation: Generation) -> None:
        wrong = [
            name
            for name, given in (
                ("a grammar or tools", generation.constraint is not None),
                ("penalties, a logit bias or a least length", generation.sampler.processes),
                ("log-probabilities", generation.logprobs is not None),
                ("a number of draft tokens", generation.max_draft_tokens is not None),
            )
            if given
        ]
        if wrong:
            raise InvalidInput(
                f"a diffusion model cannot follow {wrong[0]}", "leave it out, or choose another model"
            )

    def add(self, generation: Generation) -> None:
        self._added.append(generation)

    def update_weights(self, weights: Mapping[str, Any]) -> None:
        raise DeviceError(
            "the weights of a diffusion model cannot be replaced while it is loaded", "load it again"
        )

    def release(self, kept: KeptCache) -> None:
        """Do nothing: no cache is kept between the turns of a chat."""

    def step(self) -> list[Commit]:
        with self._lock:
            self._tidy()
            commits: list[Commit] = []
            for generation in [*self._running]:
                if generation.ended or (generation.key in self._waiting and self._decoders):
                    continue
                before = generation.sampler.state()
                try:
                    written = self._round(generation)
                except BaseException as error:  # Ctrl-C as well
                    # The round begins again with the same random numbers: a seed fixes the text.
                    generation.sampler.restore(before)
                    self._close(generation)
                    if not isinstance(error, ContextFull):
                        raise
                    if self._decoders:
                        self._waiting.add(generation.key)
                    else:  # others wait too, or have not begun: it had all the memory
                        commits += self._end(generation, error)
                    continue
                commits.append(self._written(generation, written))
            self._tidy()
            return commits

    def tidy(self) -> None:
        with self._lock:
            self._tidy()

    @property
    def num_unfinished(self) -> int:
        return len(self._added) + len(self._running)

    def _tidy(self) -> None:
        while self._added:
            self._running.append(self._added.popleft())
        for generation in [g for g in self._running if g.ended]:
            if generation.finish_reason is None:
                generation.finish_reason = "cancelled"
            self._close(generation)
            self._running.remove(generation)
            self._waiting.clear()

    def _close(self, generation: Generation) -> None:
        decoder = self._decoders.pop(generation.key, None)
        if decoder is not None:
            decoder.close()

    def _round(self, generation: Generation) -> Written:
        decoder = self._decoders.get(generation.key)
        if decoder is None:
            decoder = self._decoders[generation.key] = self._start(generation.tokens, generation.sampler)
        room = self._room - len(generation.tokens)
        if room < 1:
            raise ContextFull(f"a text of {len(generation.tokens)} tokens fills the model's context")
        return decoder.round(room)

    def _end(self, generation: Generation, error: ContextFull) -> list[Commit]:
        """End a text that does not fit; return the commit whose fault says so where it has no output."""
        if generation.num_output_tokens:
            generation.finish_reason = "length"
            return []
        generation.finish_reason = "cancelled"
        commit = Commit(generation, (), (), fault=error)
        generation.inbox.append(commit)
        return [commit]

    def _decoder(self, prompt: Sequence[int], sampler: Sampler) -> Decoder:
        if self._draft is None:
            return Native(self._target, prompt, sampler, self._options)
        return SimSD(self._target, self._draft, prompt, sampler, self._options)

    def _written(self, generation: Generation, written: Written) -> Commit:
        """Append the tokens of a round to their text, and count them."""
        name = self.policy.name if self.policy is not None else ""
        metrics = generation.metrics
        metrics.denoised = True
        tree = TokenTree.chain(written.drafted, source=name)
        path = tuple(range(written.accepted if written.drafted else 0))
        seconds = 0.0
        if generation.num_output_tokens:  # the first round read the prompt
            seconds = written.verify_s
            metrics.verify_s += written.verify_s
            metrics.draft_s += written.draft_s
        if written.drafted:
            metrics.drafting.asked(name, written.draft_s)
        step = metrics.record(Outcome(generation.key, tree, path, seconds))
        metrics.num_steps += written.steps - 1
        sources = [name if i < len(path) else "" for i in range(len(written.tokens))]
        commit = generation.append(written.tokens, sources, step=step)
        generation.inbox.append(commit)
        return commit
