"""Write rollouts with a pipeline: several samples of each prompt in one engine, with and without drafts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from specport.core.engine import Engine
from specport.core.metrics import Metrics
from specport.core.sequence import Generation
from specport.errors import InvalidInput
from specport.options import GenerationOptions
from specport.pipeline import Pipeline, Prompt


@dataclass(frozen=True)
class Rollout:
    """Hold one sampled answer.

    prompt, tokens: ids; the tokens include the end token where there was one.
    logprobs: of each token under the target at temperature 1, with which it was sampled.
    ended:    whether it has an end token, and was not cut off.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    ended: bool


@dataclass(frozen=True)
class Rollouts:
    """Hold the rollouts of one step: the samples of the first prompt, then those of the next one.

    seconds: from the first prompt's start to the last token.
    drafts, drafted, accepted: verify steps with a draft, draft tokens, and those that were accepted.
    """

    texts: list[Rollout]
    seconds: float
    drafts: int
    drafted: int
    accepted: int

    @property
    def num_tokens(self) -> int:
        return sum(len(rollout.tokens) for rollout in self.texts)


class Writer:
    """Write rollouts at temperature 1 with a pipeline's drafter, and plainly for comparison.

    max_new_tokens: of a sample.
    """

    def __init__(self, pipeline: Pipeline, max_new_tokens: int) -> None:
        engine = pipeline.engine
        if not isinstance(engine, Engine) or pipeline.lossy:
            raise InvalidInput(
                "rollouts need the law of an autoregressive model", "load one, with lossless verification"
            )
        self.pipeline, self._most = pipeline, max_new_tokens
        self._engine, self._plain = engine, engine.beside(None)

    def write(self, prompts: Sequence[Prompt], samples: int, seed: int) -> Rollouts:
        """Return so many samples of each prompt.

        seed: the samples are the same for the same seed, weights and drafter.
        """
        lengths = [self._most] * (samples * len(prompts))
        return self._run(self._engine, prompts, lengths, seed)

    def write_plain(self, prompts: Sequence[Prompt], lengths: Sequence[int], seed: int) -> Rollouts:
        """Return samples of these lengths without drafts, not ended by an end token.

        lengths: of the samples of the first prompt, then of the next one; as many for each. Those of rollouts
                 with drafts make the two comparable: the same prompts and numbers of tokens.
        """
        return self._run(self._plain, prompts, lengths, seed, ignore_eos=True)

    def _run(
        self, engine: Engine, prompts: Sequence[Prompt], lengths: Sequence[int], seed: int, **more: Any
    ) -> Rollouts:
        samples, left = divmod(len(lengths), len(prompts) or 1)
        if not lengths or left:
            raise InvalidInput("there are no prompts, or not as many samples of each")
        options = GenerationOptions.parse({"temperature": 1.0, "logprobs": 0, **more})
        own = [
            replace(options, max_new_tokens=length, seed=(seed << 16) + i) for i, length in enumerate(lengths)
        ]
        each = [prompt for prompt in prompts for _ in range(samples)]
        began = time.perf_counter()
        written = generate(self.pipeline, each, own, engine)
        seconds = time.perf_counter() - began
        found = [_rollout(generation, text) for generation, text in written]
        return Rollouts(found, seconds, *_counts([generation.metrics for generation, _ in written]))


def generate(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    options: Sequence[GenerationOptions],
    engine: Engine | None = None,
) -> list[tuple[Generation, str]]:
    """Return a finished generation for each prompt, with its text. options: of each prompt.

    engine: one on the pipeline's model; None = the pipeline's own.
    """
    requests = [pipeline.request(prompt, own) for prompt, own in zip(prompts, options, strict=True)]
    texts = [pipeline.text_of(request) for request in requests]
    begun = [pipeline.begin(request, text) for request, text in zip(requests, texts, strict=True)]
    for _ in (engine or pipeline.engine).run(begun):
        pass
    for text in texts:
        text.finish()
    return [(generation, text.text) for generation, text in zip(begun, texts, strict=True)]


def _rollout(generation: Generation, text: str) -> Rollout:
    cut = generation.num_prompt_tokens
    logprobs = tuple(entry.logprob for entry in generation.token_logprobs)
    ended = generation.finish_reason == "stop"
    return Rollout(tuple(generation.tokens[:cut]), tuple(generation.tokens[cut:]), logprobs, text, ended)


def _counts(metrics: Sequence[Metrics]) -> tuple[int, int, int]:
    return (
        sum(m.num_drafts for m in metrics),
        sum(m.num_draft_tokens for m in metrics),
        sum(m.num_accepted_tokens for m in metrics),
    )
