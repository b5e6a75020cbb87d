"""The speech service: one transcriber behind a queue, with one thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO

from specport.errors import SpecportError
from specport.speech.transcriber import Talk, Transcriber
from specport.speech.transcript import Segment, Transcript


class TooManyTalks(Exception):
    """Too many audio files wait."""


class TooLate(Exception):
    """The time for an audio file is up."""


class SpeechService:
    """Transcribe one audio after the other. Belongs to the event loop that uses it.

    name: of the model, for clients. most: audio files that run or wait.
    """

    def __init__(self, transcriber: Transcriber, name: str, most: int) -> None:
        self.transcriber, self.name = transcriber, name
        self._most, self._count = most, 0
        self._thread = ThreadPoolExecutor(1, "specport-speech")
        self._talks: set[Talk] = set()

    @property
    def num_talks(self) -> int:
        """Return how many audio files run or wait."""
        return self._count

    async def segments(
        self, audio: BinaryIO, options: dict[str, Any], done: Callable[[Transcript], None], seconds: float
    ) -> AsyncGenerator[Segment, None]:
        """Yield segments as they are understood, then call `done` with the whole.

        options: of `Transcriber.stream`. seconds: most time, waiting included. It stops when the iterator is
        closed. Raises SpecportError, TooManyTalks and TooLate.
        """
        if self._count >= self._most:
            raise TooManyTalks
        talk = self.transcriber.stream(audio, **options)
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[Segment | None] = asyncio.Queue()

        def tell(segment: Segment | None) -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(news.put_nowait, segment)

        late = False

        def expire() -> None:
            nonlocal late
            late = True
            news.put_nowait(None)

        def work() -> None:
            try:
                for segment in talk:
                    tell(segment)
            finally:
                tell(None)

        self._count += 1
        self._talks.add(talk)
        job = self._thread.submit(work)
        running = asyncio.wrap_future(job)
        timer = loop.call_later(seconds, expire)
        try:
            while (segment := await news.get()) is not None:
                yield segment
            if late:
                raise TooLate
            await running
            done(talk.transcript)
        finally:
            timer.cancel()
            talk.cancel()
            if not job.cancel():  # it has begun: the audio's file is closed after this
                with suppress(SpecportError, asyncio.CancelledError):
                    await asyncio.shield(running)
            self._count -= 1
            self._talks.discard(talk)

    async def stop(self) -> None:
        """Stop what runs, and free the model."""
        for talk in self._talks:
            talk.cancel()
        await asyncio.to_thread(self._thread.shutdown, True, cancel_futures=True)
        self.transcriber.close()
