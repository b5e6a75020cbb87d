"""One generation as a stream of text, and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from specport.core.engine import Engine, FinishReason, Generation
from specport.core.metrics import Metrics
from specport.text.detokenize import Span, TextStream


@dataclass(frozen=True)
class Chunk:
    """New text of a stream, and the same in spans of (text, drafter or "" for the target itself)."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Result:
    """A finished generation. `token_ids` are the output's, with the end token if there was one."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    metrics: Metrics
    prompt_token_ids: list[int]


class Stream:
    """Iterator over the chunks of one generation; `result` is there once it has ended.

    Dropping it early frees what it holds. `cancel` may be called from any thread.
    """

    def __init__(
        self, engine: Engine, generation: Generation, text: TextStream, on_end: Callable[[Result], None]
    ) -> None:
        self._generation = generation
        self._text = text
        self._on_end = on_end
        self._commits = engine.run([generation])
        self._result: Result | None = None

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self._result is not None:
            raise StopIteration
        try:
            for _ in self._commits:
                if spans := self._text.take():
                    return _chunk(spans)
        except BaseException:  # Ctrl-C as well: what is there becomes the result
            self.close()
            raise
        if spans := self._text.finish():
            return _chunk(spans)
        self.close()
        raise StopIteration

    def cancel(self) -> None:
        """Stop before the next step; what is there by then becomes the result."""
        self._generation.cancel()

    def close(self) -> None:
        """Stop now and free the cache. Happens by itself at the end of the iteration."""
        if self._result is not None:
            return
        self._commits.close()
        self._generation.cancel()
        self._generation.check_cancelled()
        self._text.finish()
        self._result = finished(self._generation, self._text)
        self._on_end(self._result)

    def __del__(self) -> None:
        if hasattr(self, "_result"):  # the constructor got to its end
            self.close()

    @property
    def result(self) -> Result:
        """The whole text; iterates to the end first if need be."""
        for _ in self:
            pass
        assert self._result is not None  # the iteration has ended
        return self._result


def _chunk(spans: tuple[Span, ...]) -> Chunk:
    return Chunk("".join(text for text, _ in spans), spans)


def finished(generation: Generation, text: TextStream) -> Result:
    """The result of a generation that the engine has ended."""
    assert generation.finish_reason is not None  # the engine has ended it
    cut = generation.num_prompt_tokens
    return Result(
        text.text,
        generation.tokens[cut:],
        generation.finish_reason,
        generation.metrics,
        generation.tokens[:cut],
    )
