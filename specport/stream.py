"""Stream one generation as text, and return its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from specport.core.decoding.rounds import Rounds
from specport.core.metrics import Metrics
from specport.core.sampling.logprobs import TokenLogprob
from specport.core.sequence import FinishReason, Generation
from specport.explain import Explanation, explain
from specport.text.detokenize import Span, TextStream
from specport.text.tools.definitions import ToolCall
from specport.text.tools.session import ToolSession


@dataclass(frozen=True)
class Chunk:
    """Hold new text of a stream, and the same as spans of (text, drafter name or "" for the target).

    logprobs: of the tokens whose text ends in this chunk; empty where not asked for. A token without text,
              such as the end token, comes with the chunk after it or in the result only.
    """

    text: str
    spans: tuple[Span, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Result:
    """Hold a finished generation.

    text:      all that the model wrote. content: the same without its complete calls.
    tool_calls: the complete calls of tools.
    token_ids: output tokens, including the end token if there was one.
    logprobs:  of each of token_ids but those that lie in a stop string as a whole, from the target's logits
               before penalties and temperature; empty where not asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    metrics: Metrics
    prompt_token_ids: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def message(self) -> dict[str, Any]:
        """Return the answer as a message that continues the conversation."""
        calls = [call.as_openai() for call in self.tool_calls]
        message = {"role": "assistant", "content": self.content}
        return {**message, "tool_calls": calls} if calls else message

    def explain(self) -> Explanation:
        """Return where the time went, what each drafter brought, and whether speculation paid."""
        return explain(self.metrics)


class Chunks:
    """Make chunks of what has become final since the last one."""

    def __init__(self, generation: Generation, text: TextStream) -> None:
        self._generation, self._text = generation, text
        self._num_given = 0  # tokens whose log-probabilities were given out

    def take(self) -> Chunk | None:
        """Return the next chunk; None where no text has become final."""
        return self._chunk(self._text.take())

    def finish(self) -> Chunk | None:
        """Return the last chunk of a generation that has ended; None where nothing is left."""
        return self._chunk(self._text.finish())

    def _chunk(self, spans: tuple[Span, ...]) -> Chunk | None:
        if not spans:
            return None
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._generation.logprobs is not None:
            given = self._text.num_given
            logprobs = tuple(self._generation.token_logprobs[self._num_given : given])
            self._num_given = given
        return Chunk("".join(text for text, _ in spans), spans, logprobs)


class Stream:
    """Iterate over the chunks of one generation. `result` is available at the end.

    tools: the session of a request with tools; its parser reads calls out of the chunks.

    Dropping the stream early ends the generation; its memory is freed before the engine's next round.
    `cancel` may be called from any thread.
    """

    def __init__(
        self,
        engine: Rounds,
        generation: Generation,
        text: TextStream,
        on_end: Callable[[Result], None] = lambda result: None,
        tools: ToolSession | None = None,
    ) -> None:
        self._generation = generation
        self.tools = tools
        self._engine, self._text, self._on_end = engine, text, on_end
        self._commits = engine.run([generation])
        self._result: Result | None = None
        self._chunks = Chunks(generation, text)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self._result is not None:
            raise StopIteration
        try:
            for _ in self._commits:
                if chunk := self._chunks.take():
                    return chunk
        except BaseException:  # Ctrl-C too: the text so far becomes the result
            self.close()
            raise
        if chunk := self._chunks.finish():
            return chunk
        self.close()
        raise StopIteration

    def cancel(self) -> None:
        """Stop before the next step. The text up to then becomes the result."""
        self._generation.cancel()

    def close(self) -> None:
        """Stop now and free the cache. The end of the iteration does the same."""
        if self._result is not None:
            return
        self._commits.close()
        self._generation.cancel()
        self._engine.tidy()
        self._result = finished(self._generation, self._text, self.tools)
        self._on_end(self._result)

    def __del__(self) -> None:
        if hasattr(self, "_generation"):  # may run during a step: take no lock here
            self._generation.cancel()

    @property
    def result(self) -> Result:
        """The result of the generation. Reads the stream to its end first."""
        for _ in self:
            pass
        assert self._result is not None  # the iteration has ended
        return self._result


def finished(generation: Generation, text: TextStream, tools: ToolSession | None = None) -> Result:
    """Return the result of a generation that has ended, or that was closed before it began."""
    text.finish()
    content, calls = tools.parse(text.text) if tools is not None else (text.text, [])
    cut = generation.num_prompt_tokens
    return Result(
        text.text,
        generation.tokens[cut:],
        generation.finish_reason or "cancelled",
        generation.metrics,
        generation.tokens[:cut],
        generation.token_logprobs[: text.num_tokens],
        content,
        calls,
    )
