"""The Python API: load a model with its drafter, generate, stream, chat.

Knows text, messages and options; the loop itself is `core.engine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from specport.core.engine import Engine, Generation
from specport.core.planning.policies import make_policy
from specport.core.ports import CacheHandle, Policy, StopRule
from specport.core.sampling.sampler import SamplingParams
from specport.core.verify.rules import AcceptanceRule, rule_for
from specport.errors import InvalidInput
from specport.stream import Result, Stream, finished
from specport.text.detokenize import TextStream
from specport.text.tokenizer import Tokenizer

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}
Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class GenerationOptions(SamplingParams):
    """How to generate: sampling parameters and where to begin and end. Greedy by default.

    stop:   strings that end the text; they are not part of it.
    system: system message put in front of a prompt that is a plain string.
    raw:    encode a string prompt as it is, without the chat template.
    """

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    system: str | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int):
            raise InvalidInput(f"max_new_tokens is {self.max_new_tokens!r}; it must be a whole number")
        if self.max_new_tokens < 1:
            raise InvalidInput(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(stop):
            raise InvalidInput("a stop string is empty")
        object.__setattr__(self, "stop", stop)


@dataclass(frozen=True)
class Drafting:
    """How much to draft and how drafts are accepted; see `policies.make_policy` and `rule_for`.

    Raises InvalidInput for names and numbers that mean nothing.
    """

    policy: str = "planned"
    num_draft_tokens: int | None = None
    branches: tuple[int, ...] = ()
    acceptance: str = "rejection"
    classifier: StopRule | None = None

    def __post_init__(self) -> None:
        self.make_policy()
        self.make_rule(SamplingParams(temperature=1.0))

    def make_policy(self) -> Policy:
        return make_policy(self.policy, self.num_draft_tokens, self.branches, self.classifier)

    def make_rule(self, params: SamplingParams) -> AcceptanceRule:
        return rule_for(params, self.acceptance)


class Pipeline:
    """A loaded target with its drafter. Made by `specport.load`.

    Thread-safe: generations of several threads take turns step by step. `notes` are what the user
    should know about this set-up.
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
        self.draft_name = engine.drafter.name if engine.drafter else "none"
        self.exact = engine.model.capabilities.exact
        self.notes = list(notes)
        self._drafting = drafting or Drafting()

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise InvalidInput("this pipeline is closed", "load it again")
        return self._engine

    def close(self) -> None:
        """Let the models go; streams that are still being read keep them until they end."""
        self._engine = None

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[Result]: ...
    @overload
    def generate(self, prompt: Prompt, **options: Any) -> Result: ...
    def generate(self, prompt: Prompt | list[str], **options: Any) -> Result | list[Result]:
        """Generate for a text, a conversation, or several texts at once (see GenerationOptions)."""
        if not (isinstance(prompt, list) and prompt and all(isinstance(p, str) for p in prompt)):
            return self.stream(prompt, **options).result  # type: ignore[arg-type]
        parsed = _options(options)
        texts = [TextStream(self.tokenizer, parsed.stop) for _ in prompt]
        prompts = [self.encode(p, parsed) for p in prompt]  # all are checked before any is begun
        generations: list[Generation] = []
        try:
            for ids, text in zip(prompts, texts, strict=True):
                generations.append(self.begin(ids, parsed, text, self.engine.open()))
            for _ in self.engine.run(generations):
                pass
        finally:
            for generation in generations:
                self.engine.close(generation.handle)
        for text in texts:
            text.finish()
        return [finished(g, text) for g, text in zip(generations, texts, strict=True)]

    def stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Like `generate` for one prompt, chunk by chunk as tokens are committed."""
        parsed = _options(options)
        ids = self.encode(prompt, parsed)
        text = TextStream(self.tokenizer, parsed.stop)
        engine = self.engine
        generation = self.begin(ids, parsed, text, engine.open())
        return Stream(engine, generation, text, lambda _: engine.close(generation.handle))

    def chat(self, system: str | None = None, **options: Any) -> Chat:
        """A conversation that keeps its cache between turns."""
        return Chat(self, _options(options), system)

    def encode(self, prompt: Prompt, options: GenerationOptions) -> list[int]:
        """Token ids of a prompt. Raises InvalidInput when it is empty or does not fit the context."""
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InvalidInput("the prompt is empty", 'give a text, as in: specport run "Hello"')
            if options.raw or not self.tokenizer.has_chat_template:
                return self._checked(self.tokenizer.encode(prompt))
            prompt = [{"role": "user", "content": prompt}]
            if options.system is not None:
                prompt = [{"role": "system", "content": options.system}, *prompt]
        if not prompt:
            raise InvalidInput("there are no messages")
        return self._checked(self.tokenizer.chat(prompt))

    def _checked(self, ids: list[int]) -> list[int]:
        limit = self.engine.model.max_context
        if len(ids) >= limit:
            raise InvalidInput(
                f"the prompt has {len(ids)} tokens; the model's context holds {limit}, answer included",
                "shorten the prompt or choose a model with a longer context",
            )
        return ids

    def begin(
        self, ids: list[int], options: GenerationOptions, text: TextStream, handle: CacheHandle
    ) -> Generation:
        return Generation(
            tokens=list(ids),
            handle=handle,
            params=options,
            policy=self._drafting.make_policy(),
            max_new_tokens=min(options.max_new_tokens, self.engine.model.max_context - len(ids)),
            eos_ids=self.tokenizer.eos_ids,
            on_token=text.push,
            rule=self._drafting.make_rule(options),
        )


class Chat:
    """A conversation. What earlier turns left in the cache is not computed again."""

    def __init__(self, pipeline: Pipeline, options: GenerationOptions, system: str | None) -> None:
        if not pipeline.tokenizer.has_chat_template:
            raise InvalidInput("this model has no chat template", "use `generate` with a plain prompt")
        self._pipeline = pipeline
        self._engine = pipeline.engine
        self._options = options
        self._system = system if system is not None else options.system
        self._handle = self._engine.open()
        self._last: Generation | None = None  # what the cache holds
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget the conversation, but not the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system is not None else []

    def send(self, text: str) -> Stream:
        """Say something; stream the answer. An answer that is cut off stays as far as it came.

        Raises InvalidInput when the text is empty, the conversation no longer fits the context, or
        the last answer has not been read to its end.
        """
        if not text.strip():
            raise InvalidInput("the message is empty")
        if self._last is not None and self._last.finish_reason is None:
            raise InvalidInput("the last answer is still being written", "read or close its stream first")
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = self._pipeline.encode(asked, self._options)
        self._reuse_cache(ids)
        output = TextStream(self._pipeline.tokenizer, self._options.stop)
        self._last = generation = self._pipeline.begin(ids, self._options, output, self._handle)

        def record(result: Result) -> None:
            self.messages = [*asked, {"role": "assistant", "content": result.text}]

        return Stream(self._engine, generation, output, record)

    def _reuse_cache(self, ids: Sequence[int]) -> None:
        """Keep of the cache what the new prompt begins with; its last token is always read anew."""
        same = 0
        if self._last is not None:
            limit = min(self._handle.length, len(ids) - 1)
            while same < limit and self._last.tokens[same] == ids[same]:
                same += 1
        self._engine.rewind(self._handle, same)

    def close(self) -> None:
        """Free the cache."""
        self._engine.close(self._handle)
        self._last = None


def _options(options: Mapping[str, Any]) -> GenerationOptions:
    try:
        return GenerationOptions(**options)
    except TypeError as error:
        known = ", ".join(GenerationOptions.__dataclass_fields__)
        raise InvalidInput(f"unknown option: {error}", f"options are {known}") from error
