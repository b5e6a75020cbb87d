"""A conversation: its messages, and the cache that its turns share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from specport.core.decoding.rounds import Rounds
from specport.core.sequence import Generation, KeptCache
from specport.errors import InvalidInput
from specport.options import GenerationOptions
from specport.request import TextRequest
from specport.stream import Result, Stream, finished
from specport.text.detokenize import TextStream

if TYPE_CHECKING:
    from specport.text.tokenizer import Tokenizer

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}


class Speaker(Protocol):
    """What a conversation needs of a pipeline."""

    tokenizer: Tokenizer

    @property
    def engine(self) -> Rounds: ...

    def request(self, prompt: Sequence[Message], options: GenerationOptions) -> TextRequest: ...

    def text_of(self, request: TextRequest) -> TextStream: ...

    def begin(self, request: TextRequest, text: TextStream, kept: KeptCache | None = None) -> Generation: ...


@dataclass
class _Turn:
    """Hold an answer that is not in the messages yet."""

    asked: list[dict[str, str]]
    generation: Generation
    text: TextStream


class Chat:
    """Hold a conversation. Cached tokens of earlier turns are not computed again.

    Under memory pressure the engine may evict the cache between turns; the next turn then computes the whole
    conversation again.
    """

    def __init__(self, pipeline: Speaker, options: GenerationOptions, system: str | None) -> None:
        if not pipeline.tokenizer.has_chat_template:
            raise InvalidInput("this model has no chat template", "use `generate` with a plain prompt")
        self._pipeline = pipeline
        self._engine = pipeline.engine
        self._options = options
        self._system = system if system is not None else options.system
        self._kept = KeptCache()
        self._turn: _Turn | None = None
        self._closed = False
        self._messages: list[dict[str, str]] = []
        self.reset()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far. An answer that was cut off is included as far as it was generated."""
        self._settle()
        return self._messages

    def reset(self) -> None:
        """Clear the conversation; keep the system message."""
        self._turn = None
        self._messages = [{"role": "system", "content": self._system}] if self._system is not None else []

    def send(self, text: str) -> Stream:
        """Send a message and return the stream of the answer.

        Raises InvalidInput when the chat is closed, the text is empty, the conversation no longer fits the
        context, or the stream of the last answer is still open.
        """
        if self._closed:
            raise InvalidInput("this chat is closed", "start another with pipeline.chat()")
        if not text.strip():
            raise InvalidInput("the message is empty")
        self._settle()
        if self._turn is not None:
            raise InvalidInput("the last answer is still being written", "read or close its stream first")
        asked = [*self._messages, {"role": "user", "content": text}]
        request = self._pipeline.request(asked, self._options)
        output = self._pipeline.text_of(request)
        generation = self._pipeline.begin(request, output, self._kept)
        self._turn = turn = _Turn(asked, generation, output)

        def record(result: Result) -> None:
            if self._turn is turn:
                self._record(result)

        return Stream(self._engine, generation, output, record)

    def _settle(self) -> None:
        """Add the answer of a stream that was dropped without being closed."""
        if self._turn is None or not self._turn.generation.ended:
            return
        self._engine.tidy()
        self._record(finished(self._turn.generation, self._turn.text))

    def _record(self, result: Result) -> None:
        assert self._turn is not None  # called by `send` and `_settle` only
        self._messages = [*self._turn.asked, {"role": "assistant", "content": result.text}]
        self._turn = None

    def close(self) -> None:
        """Free the cache. An answer whose stream is still open continues to its end."""
        self._closed = True
        self._engine.release(self._kept)
        self._engine.tidy()

    def __del__(self) -> None:
        if hasattr(self, "_kept"):  # take no lock here: the engine frees it before its next round
            self._engine.release(self._kept)
