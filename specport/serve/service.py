"""The service: a pipeline behind a queue, with one worker. Knows whether it is ready, and ends in order."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeVar

from specport.core.sequence import Generation
from specport.pipeline import Pipeline
from specport.request import TextRequest
from specport.serve.admission import Admission, QueueFull
from specport.serve.answer import Answer, Choice
from specport.serve.metrics import ServerMetrics
from specport.serve.settings import Limits
from specport.serve.worker import Job, Worker

State = Literal["warming up", "ready", "shutting down"]
PREPARERS = 2  # threads that read and tokenize requests
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class NotReady(Exception):
    """The service takes no requests now."""


class Busy(Exception):
    """Too many sequences wait. seconds: when it may be worth another try."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Service:
    """Answer requests with one pipeline. Belongs to the event loop that `start` is awaited in."""

    def __init__(self, pipeline: Pipeline, limits: Limits, metrics: ServerMetrics) -> None:
        self.pipeline, self.limits, self.metrics = pipeline, limits, metrics
        self.state: State = "warming up"
        self._admission = Admission(limits.max_running, limits.max_queue)
        self._worker = Worker(pipeline.engine, metrics, self._changed)
        self._preparers = ThreadPoolExecutor(PREPARERS, "specport-requests")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._warming: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._num_answers = 0
        self._seconds = 1.0  # that a sequence takes, roughly
        metrics.watch(self._num_running, self._num_waiting, self._usage)

    async def start(self) -> None:
        """Start the worker and the warm-up. `state` becomes "ready"."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()
        self._warming = asyncio.ensure_future(self._warm_up())

    async def _warm_up(self) -> None:
        """Generate a few tokens, so that the first request does not wait for what is made at first use."""
        try:
            await asyncio.to_thread(self._generate)
        except Exception:
            _log.exception("the warm-up failed; requests may, too")
        if self.state == "warming up":
            self.state = "ready"

    def _generate(self) -> None:
        for prompts in (["one two one two one"], ["one two one two one", "three three three"]):
            # So short that `specport adapt` does not learn from it.
            self.pipeline.generate(prompts, raw=True, ignore_eos=True, max_new_tokens=3)

    async def ready(self) -> None:
        """Wait for the end of the warm-up."""
        if self._warming is not None:
            await self._warming

    async def drain(self) -> bool:
        """Take no more requests, and wait for the running ones. Return whether they ended in time."""
        self.state = "shutting down"
        try:
            await asyncio.wait_for(self._idle.wait(), self.limits.shutdown_seconds)
        except asyncio.TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Cancel what still runs, and end the threads."""
        self.state = "shutting down"
        await self.ready()
        self._preparers.shutdown(wait=False, cancel_futures=True)
        if not await asyncio.to_thread(self._worker.stop, 30.0):
            _log.warning("a step of the model has not ended")
        await asyncio.sleep(0)  # the last sequences are reported in the event loop

    async def prepared(self, work: Callable[[], _T]) -> _T:
        """Run a function in another thread, so that large prompts do not hold the event loop up."""
        self._check()
        return await asyncio.get_running_loop().run_in_executor(self._preparers, work)

    def choices(self, requests: Sequence[TextRequest], max_draft_tokens: int | None = None) -> list[Choice]:
        """Return the sequences of these requests. A large grammar takes a while: call it with `prepared`."""
        found = []
        for index, request in enumerate(requests):
            text = self.pipeline.text_of(request)
            generation = self.pipeline.begin(request, text, max_draft_tokens=max_draft_tokens)
            found.append(Choice(index, request, generation, text))
        return found

    def answer(self, client: str, choices: Sequence[Choice]) -> Answer:
        """Return an answer with these choices; reading its events runs it.

        client: clients take turns. Raises NotReady and Busy.
        """
        self._check()
        try:
            ticket = self._admission.enter(client, len(choices))
        except QueueFull:
            self.metrics.rejected()
            waiting = self._admission.num_waiting / self.limits.max_running
            raise Busy(min(60, math.ceil(self._seconds * (1 + waiting)))) from None
        self.metrics.request(len(choices), choices[0].generation.max_new_tokens)
        self._num_answers += 1
        self._idle.clear()
        return Answer(
            choices, ticket, self._admission, start=self._worker.add, nudge=self._worker.nudge,
            closed=self._closed, seconds=self.limits.request_seconds, beat=self.limits.beat_seconds,
        )  # fmt: skip

    @contextmanager
    def other_work(self) -> Iterator[None]:
        """Let the end of the service wait for work of another kind. Raises NotReady."""
        self._check()
        self._num_answers += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._closed()

    def _check(self) -> None:
        if self.state != "ready":
            raise NotReady(self.state)

    def _closed(self) -> None:
        self._num_answers -= 1
        if not self._num_answers:
            self._idle.set()

    def _changed(self, jobs: Sequence[Job]) -> None:
        """Hand the worker's news to the event loop. Called by the worker's thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, [(job, job.done) for job in jobs])
        except RuntimeError:  # the loop was closed
            _log.debug("news for a loop that is closed")

    def _deliver(self, jobs: Sequence[tuple[Job, bool]]) -> None:
        for job, done in jobs:
            assert isinstance(job, Choice) and job.answer is not None
            job.answer.changed()
            if done:
                job.answer.left()
                self._count(job.generation)

    def _count(self, generation: Generation) -> None:
        self.metrics.ended(generation)
        m = generation.metrics
        self._seconds += 0.1 * (m.ttft_s - m.queue_s + m.decode_s - self._seconds)

    def _num_running(self) -> int:
        return self._admission.num_running

    def _usage(self) -> float | None:
        return self.pipeline.engine.model.cache_usage

    def _num_waiting(self) -> int:
        return self._admission.num_waiting
