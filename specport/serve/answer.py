"""The sequences of one request: from the queue to their last token, as events for asyncio.

Text is taken when the reader asks for it. A reader that is slow gets longer pieces, and holds nobody up: what
waits for it is never more than the text itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from specport.core.metrics import StepCounts
from specport.core.sampling.logprobs import TokenLogprob
from specport.core.sequence import Generation
from specport.request import TextRequest
from specport.serve.admission import Admission, Ticket
from specport.serve.worker import Job
from specport.stream import Chunk, Chunks, Result, finished
from specport.text.detokenize import Span, TextStream
from specport.text.tools.parser import CallDelta, TextDelta


class TimedOut(Exception):
    """A request took longer than it may."""


class Failed(Exception):
    """The engine failed, or ended before the text did."""


class Choice(Job):
    """One sequence of a request, and its text. index: its place in the request."""

    def __init__(self, index: int, request: TextRequest, generation: Generation, text: TextStream) -> None:
        super().__init__(generation)
        self.index, self.text = index, text
        self.answer: Answer | None = None
        self._tools = request.tools
        self._parser = request.tools.parser() if request.tools else None
        self._chunks = Chunks(generation, text)

    def news(self) -> Event | None:
        """Return what is final and was not given out before; None = nothing."""
        last = self.done
        chunk = (self._chunks.finish() if last else self._chunks.take()) or Chunk("", ())
        parts: list[TextDelta | CallDelta] = [TextDelta(chunk.text)] if chunk.text else []
        if self._parser is not None:
            parts = [*self._parser.feed(chunk.text), *(self._parser.finish() if last else ())]
        steps = [self.steps.popleft() for _ in range(len(self.steps))]
        if not (parts or chunk.spans or chunk.logprobs or steps or last):
            return None
        return Event(self, parts, chunk.logprobs, last, chunk.spans, steps)

    @property
    def result(self) -> Result:
        """The result, once it has ended."""
        return finished(self.generation, self.text, self._tools)

    @property
    def num_calls(self) -> int:
        """The number of complete calls of tools in what was given out."""
        return len(self._parser.calls) if self._parser is not None else 0


@dataclass(frozen=True)
class Event:
    """Hold what is new of a choice.

    last:  no more comes, and its generation has a finish reason.
    spans: the new text as the model wrote it, calls of tools included, with the drafter of each piece.
    steps: the verify steps that ended.
    """

    choice: Choice
    parts: Sequence[TextDelta | CallDelta]
    logprobs: Sequence[TokenLogprob]
    last: bool
    spans: Sequence[Span]
    steps: Sequence[StepCounts]


class Answer:
    """The answer to one request.

    start:   gives a sequence to the worker.
    nudge:   tells the worker that sequences were cancelled.
    closed:  called once, by `close`.
    seconds: time limit from now on.
    beat:    an event None comes after as many seconds without another one.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        ticket: Ticket,
        admission: Admission,
        *,
        start: Callable[[Job], None],
        nudge: Callable[[], None],
        closed: Callable[[], None],
        seconds: float,
        beat: float,
    ) -> None:
        self.choices = choices
        self._ticket, self._admission = ticket, admission
        self._start, self._nudge, self._closed, self._beat = start, nudge, closed, beat
        self._started = self._is_closed = False
        self._deadline = time.perf_counter() + seconds
        self._changed = asyncio.Event()
        for choice in choices:
            choice.answer = self

    def changed(self) -> None:
        """Say that a choice has news. Called in the event loop."""
        self._changed.set()

    def left(self) -> None:
        """Say that the engine has let go of a sequence. Called in the event loop, once for each choice."""
        self._admission.leave()

    @property
    def results(self) -> list[Result]:
        """The results of all choices, once they have ended."""
        return [choice.result for choice in self.choices]

    async def events(self) -> AsyncIterator[Event | None]:
        """Wait for admission, and yield the choices' text until all have ended.

        Raises TimedOut and Failed. The reader closes the answer in any case.
        """
        while not await self._wait(self._ticket.admitted):
            yield None
        self._started = True
        for choice in self.choices:
            self._start(choice)
        going = list(self.choices)
        while going:
            if not await self._wait(self._changed):
                yield None
                continue
            self._changed.clear()
            for choice in tuple(going):
                new = choice.news()
                if new is None:
                    continue
                if new.last:
                    going.remove(choice)
                    self._check(choice)
                yield new

    def close(self) -> None:
        """Cancel what still runs, and give up the place in the queue."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._started:
            for choice in self.choices:
                choice.generation.cancel()
            self._nudge()
        elif self._ticket.admitted.is_set():
            self._admission.leave(self._ticket.count)
        else:
            self._admission.withdraw(self._ticket)
        self._closed()

    async def _wait(self, event: asyncio.Event) -> bool:
        """Return whether the event came before the next beat."""
        left = self._deadline - time.perf_counter()
        if left <= 0:
            raise TimedOut
        # Not `wait_for`: before Python 3.12 it drops a cancellation that comes together with the event.
        waiting = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({waiting}, timeout=min(left, self._beat))
            return event.is_set()
        finally:
            waiting.cancel()

    @staticmethod
    def _check(choice: Choice) -> None:
        if choice.fault is not None:
            raise Failed("the engine failed") from choice.fault
        if choice.generation.finish_reason == "cancelled":
            raise Failed("the server is shutting down")
