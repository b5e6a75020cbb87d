"""A loaded target with its drafters: generate, stream, chat. Handles text and messages, not decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, overload

from specport.chat import Chat, Message
from specport.core.decoding.rounds import Rounds
from specport.core.policies.drafting import Drafting
from specport.core.sequence import Generation, KeptCache
from specport.errors import InvalidInput, PromptTooLong
from specport.options import GenerationOptions
from specport.request import TextRequest
from specport.stream import Result, Stream, finished
from specport.text.detokenize import TextStream
from specport.text.grammar.matcher import GrammarConstraint, Vocabulary
from specport.text.tokenizer import Tokenizer
from specport.text.tools.session import prepare

Prompt = str | Sequence[Message]


class Pipeline:
    """A loaded target with its drafters, made by `specport.load`.

    Thread-safe: generations of several threads share the steps of the model. Each gets the same text as it
    would alone. `notes` tells the user about the set-up, such as a fallback. `on_close` is called at the end.
    `lossy` names the method where texts are not the unmodified model's; "" = they are.
    """

    def __init__(
        self,
        engine: Rounds,
        tokenizer: Tokenizer,
        drafting: Drafting | None = None,
        *,
        model_name: str = "",
        device_name: str = "",
        lossy: str = "",
        notes: Sequence[str] = (),
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_close = on_close
        self._engine: Rounds | None = engine
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.device_name = device_name
        self.draft_name = engine.policy.name if engine.policy else "none"
        self.lossy = lossy
        self.exact = engine.model.capabilities.exact and not lossy
        self.notes = list(notes)
        self._drafting = drafting or Drafting()

    @property
    def mode(self) -> str:
        """Return how texts relate to those of plain decoding: "exact", "fast", or that they are lossy."""
        if self.lossy:
            return f"lossy ({self.lossy})"
        return "exact" if self.exact else "fast"

    @property
    def engine(self) -> Rounds:
        """The engine. Raises InvalidInput when the pipeline is closed."""
        if self._engine is None:
            raise InvalidInput("this pipeline is closed", "load it again")
        return self._engine

    def close(self) -> None:
        """Release the models. Open streams keep them until they end."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.tidy()
            self._on_close()

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
        asked = [self.request(p, parsed) for p in prompt]  # check all prompts before any generation starts
        engine = self.engine
        texts = [self.text_of(request) for request in asked]
        generations = [self.begin(request, text) for request, text in zip(asked, texts, strict=True)]
        try:
            for _ in engine.run(generations):
                pass
        finally:
            for generation in generations:
                generation.cancel()
            engine.tidy()
        return [
            finished(generation, text, request.tools)
            for generation, text, request in zip(generations, texts, asked, strict=True)
        ]

    def stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Generate for one prompt and return a stream of chunks, one per commit."""
        request = self.request(prompt, GenerationOptions.parse(options))
        text = self.text_of(request)
        return Stream(self.engine, self.begin(request, text), text, tools=request.tools)

    def update_weights(self, weights: Mapping[str, Any]) -> None:
        """Replace weights of the target in place, as between the steps of reinforcement learning.

        weights: arrays or torch tensors by the names of the model's Hugging Face checkpoint, such as
                 `model.state_dict()`; what is missing stays. They are copied, in the target's precision.

        Drafts stay as they are; what they share with the target (embeddings, rows of its head) follows. Later
        texts are those of a model that was loaded with the new weights, bit for bit in exact mode. Texts that
        are being generated go on with the new weights.

        Raises DeviceError where the device cannot do it, and InvalidInput for unknown names or other shapes.
        """
        self.engine.update_weights(weights)

    def chat(self, system: str | None = None, **options: Any) -> Chat:
        """Start a conversation that keeps its cache between turns."""
        parsed = GenerationOptions.parse(options)
        if parsed.tools:
            raise InvalidInput("a chat has no tools", "use generate or stream with the list of messages")
        return Chat(self, parsed, system)

    def request(self, prompt: Prompt, options: GenerationOptions) -> TextRequest:
        """Return a prompt in tokens. Raises InvalidInput when it is empty or too long."""
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InvalidInput("the prompt is empty", 'give a text, as in: specport run "Hello"')
            if options.raw or not self.tokenizer.has_chat_template:
                if options.tools:
                    raise InvalidInput("tools need a chat template", "leave out raw, or choose a chat model")
                return TextRequest(self.fitting(self.tokenizer.encode(prompt)), options)
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
        if not options.tools and not any(m.get("role") == "tool" or m.get("tool_calls") for m in prompt):
            return TextRequest(self.fitting(self.tokenizer.chat(prompt)), options)
        tools = prepare(
            prompt, options.tools, options.tool_choice, self.tokenizer,
            parallel=options.parallel_tool_calls, grammar=options.grammar,
        )  # fmt: skip
        return TextRequest(self.fitting(tools.prompt), replace(options, grammar=tools.grammar), tools)

    def text_of(self, request: TextRequest) -> TextStream:
        """Return where the text of an answer is collected."""
        shown = request.tools.shown if request.tools else frozenset[int]()
        return TextStream(self.tokenizer, request.options.stop, shown)

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
        request: TextRequest,
        text: TextStream,
        kept: KeptCache | None = None,
        max_draft_tokens: int | None = None,
    ) -> Generation:
        """Return a generation that passes its tokens to `text` when the engine runs it.

        max_draft_tokens: see `Generation`; 0 = plain decoding.
        """
        ids, options = request.ids, request.options
        generation = Generation(
            tokens=list(ids),
            params=options,
            max_new_tokens=min(options.max_new_tokens, self.engine.model.max_context - len(ids)),
            eos_ids=frozenset() if options.ignore_eos else self.tokenizer.eos_ids,
            on_token=text.push,
            constraint=self._constraint(options, len(ids)),
            rule=self._drafting.make_rule(options),
            max_draft_tokens=max_draft_tokens,
            logprobs=options.logprobs,
            kept=kept,
        )
        generation.metrics.lossy = self.lossy
        self.engine.check(generation)
        return generation

    def _constraint(self, options: GenerationOptions, start: int) -> GrammarConstraint | None:
        if options.grammar is None:
            return None
        return GrammarConstraint(self._vocabulary, options.grammar.compiled(), start)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)


def _is_batch(prompt: Any) -> bool:
    """Return whether a prompt is a list of texts or a list of conversations."""
    if not isinstance(prompt, list) or not prompt:
        return False
    return all(isinstance(p, str) for p in prompt) or all(isinstance(p, list) for p in prompt)
