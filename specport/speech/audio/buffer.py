"""Give windows of an audio that is read once, from its beginning to its end, in bounded memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np

from specport.speech.audio.read import RATE, Samples

_AHEAD = 256  # blocks that a thread reads ahead
PATIENCE_S = 0.25  # without news, a live source counts as waiting


class AudioBuffer:
    """Hold the samples between the last window's start and what was read so far. Positions are in samples.

    blocks: pieces of audio, in order.
    live:   whether a block may be long in coming, as from a microphone: a thread then reads ahead.
    """

    def __init__(self, blocks: Iterable[Samples], *, live: bool = False) -> None:
        self.ended = False
        self._blocks: Iterator[Samples | None] = _ahead(blocks) if live else iter(blocks)
        self._start = 0
        self._held: list[Samples] = []
        self._size = 0

    @property
    def end(self) -> int:
        """Return the position after the last sample read."""
        return self._start + self._size

    @property
    def seconds(self) -> float:
        """Return the time up to which the audio was read."""
        return self.end / RATE

    def fill(self, position: int) -> bool:
        """Read on up to a position. Return whether that or the end was reached; False = wait for more."""
        while self.end < position and not self.ended:
            block = next(self._blocks, _END)
            if block is None:
                return False
            if block is _END:
                self.ended = True
            else:
                self._held.append(block)
                self._size += len(block)
        return True

    def stop(self) -> None:
        """Take what was read so far as the whole audio."""
        self.ended = True

    def window(self, start: int, length: int) -> Samples:
        """Return the samples from `start` on, at most `length`, and forget those before. Reads no more."""
        if start < self._start:
            raise ValueError(f"the samples before {self._start} are forgotten")
        self._forget(start)
        found = np.concatenate(self._held) if self._held else np.zeros(0, np.float32)
        found = found[start - self._start :].copy()
        self._start, self._size = start, len(found)
        self._held = [found] if len(found) else []
        return found[:length]

    def skip(self, position: int) -> None:
        """Read on to a position and forget what lies before it."""
        while self.end < position and not self.ended:
            self.fill(min(position, self.end + RATE))
            self._forget(position)

    def finish(self) -> None:
        """Read on to the end and forget all of it: `seconds` is the audio's length then."""
        while not self.ended:
            self.skip(self.end + RATE)

    def close(self) -> None:
        """Read no more, and let go of what gives the blocks. Closing twice is harmless."""
        self.ended = True
        close = getattr(self._blocks, "close", None)
        if close is not None:
            close()

    def _forget(self, position: int) -> None:
        while self._held and self._start + len(self._held[0]) <= position:
            first = self._held.pop(0)
            self._start += len(first)
            self._size -= len(first)


_END = np.zeros(0, np.float32)


def _ahead(blocks: Iterable[Samples]) -> Iterator[Samples | None]:
    """Yield blocks that a thread reads; None whenever the next one is not there yet.

    The thread ends with the iterator, once the block that it waits for has come.
    """
    waiting: queue.Queue[Samples | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def give(item: Samples | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=PATIENCE_S)
                return

    def read() -> None:
        try:
            for block in blocks:
                give(block)
                if stopped.is_set():
                    return
            give(None)
        except BaseException as error:  # it is raised where the blocks are wanted
            give(error)

    threading.Thread(target=read, name="specport-audio", daemon=True).start()
    try:
        while True:
            try:
                block = waiting.get(timeout=PATIENCE_S)
            except queue.Empty:
                yield None
                continue
            if block is None:
                return
            if isinstance(block, BaseException):
                raise block
            yield block
    finally:
        stopped.set()
