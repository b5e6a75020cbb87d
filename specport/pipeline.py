"""A loaded target with its drafters: generate, stream, chat. Handles text and messages, not decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from specport.chat import Chat, Message
from specport.core.engine import Engine
from specport.core.policies.drafting import Drafting
from specport.core.sequence import Generation, KeptCache
from specport.errors import InvalidInput, PromptTooLong
from specport.options import GenerationOptions
from specport.stream import Result, Stream, finished
from specport.text.detokenize import TextStream
from specport.text.tokenizer import Tokenizer

Prompt = str | Sequence[Message]


class Pipeline:
    """A loaded target with its drafters, made by `specport.load`.

    Thread-safe: generations of several threads share the steps of the model. Each gets the same text as it
    would alone. `notes` tells the user about the set-up, such as a fallback.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        drafting: Drafting | None = None,
        *,
        model_name: str = "",
        device_name: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self._engine: Engine | None = engine
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.device_name = device_name
        self.draft_name = engine.policy.name if engine.policy else "none"
        self.exact = engine.model.capabilities.exact
        self.notes = list(notes)
        self._drafting = drafting or Drafting()

    @property
    def engine(self) -> Engine:
        """The engine. Raises InvalidInput when the pipeline is closed."""
        if self._engine is None:
            raise InvalidInput("this pipeline is closed", "load it again")
        return self._engine

    def close(self) -> None:
        """Release the models. Open streams keep them until they end."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.tidy()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def generate(self, prompt: list[str] | list[list[Message]], **options: Any) -> list[Result]: ...
    @overload
    def generate(self, prompt: Prompt, **options: Any) -> Result: ...
    def generate(self, prompt: Any, **options: Any) -> Result | list[Result]:
        """Generate for a text, a conversation, or a list of either (options: `GenerationOptions`)."""
        if not _is_batch(prompt):
            return self.stream(prompt, **options).result
        parsed = GenerationOptions.parse(options)
        texts = [TextStream(self.tokenizer, parsed.stop) for _ in prompt]
        prompts = [self.encode(p, parsed) for p in prompt]  # check all prompts before any generation starts
        engine = self.engine
        generations = [self.begin(ids, parsed, text) for ids, text in zip(prompts, texts, strict=True)]
        try:
            for _ in engine.run(generations):
                pass
        finally:
            for generation in generations:
                generation.cancel()
            engine.tidy()
        return [finished(g, text) for g, text in zip(generations, texts, strict=True)]

    def stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Generate for one prompt and return a stream of chunks, one per commit."""
        parsed = GenerationOptions.parse(options)
        ids = self.encode(prompt, parsed)
        text = TextStream(self.tokenizer, parsed.stop)
        return Stream(self.engine, self.begin(ids, parsed, text), text)

    def chat(self, system: str | None = None, **options: Any) -> Chat:
        """Start a conversation that keeps its cache between turns."""
        return Chat(self, GenerationOptions.parse(options), system)

    def encode(self, prompt: Prompt, options: GenerationOptions) -> list[int]:
        """Return the token ids of a prompt. Raises InvalidInput when it is empty or too long."""
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InvalidInput("the prompt is empty", 'give a text, as in: specport run "Hello"')
            if options.raw or not self.tokenizer.has_chat_template:
                return self.fitting(self.tokenizer.encode(prompt))
            prompt = [{"role": "user", "content": prompt}]
            if options.system is not None:
                prompt = [{"role": "system", "content": options.system}, *prompt]
        if not prompt:
            raise InvalidInput("the prompt has no messages")
        if not all(isinstance(message, Mapping) for message in prompt):
            raise InvalidInput(
                "a prompt is a text or a list of messages",
                'a message is {"role": "user", "content": "..."}; a batch is a list of either',
            )
        return self.fitting(self.tokenizer.chat(prompt))

    def fitting(self, ids: list[int]) -> list[int]:
        """Return the ids of a prompt. Raises PromptTooLong where the context has no room for an answer."""
        limit = self.engine.model.max_context
        if len(ids) >= limit:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens; the model's context holds {limit}, answer included",
                "shorten the prompt or choose a model with a longer context",
            )
        return ids

    def begin(
        self,
        ids: list[int],
        options: GenerationOptions,
        text: TextStream,
        kept: KeptCache | None = None,
        max_draft_tokens: int | None = None,
    ) -> Generation:
        """Return a generation that passes its tokens to `text` when the engine runs it.

        max_draft_tokens: see `Generation`; 0 = plain decoding.
        """
        return Generation(
            tokens=list(ids),
            params=options,
            max_new_tokens=min(options.max_new_tokens, self.engine.model.max_context - len(ids)),
            eos_ids=frozenset() if options.ignore_eos else self.tokenizer.eos_ids,
            on_token=text.push,
            rule=self._drafting.make_rule(options),
            max_draft_tokens=max_draft_tokens,
            logprobs=options.logprobs,
            kept=kept,
        )


def _is_batch(prompt: Any) -> bool:
    """Return whether a prompt is a list of texts or a list of conversations."""
    if not isinstance(prompt, list) or not prompt:
        return False
    return all(isinstance(p, str) for p in prompt) or all(isinstance(p, list) for p in prompt)
