"""Text that the target writes, for a draft's guesses to be measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specport.core.engine import Engine
from specport.core.ports import Block, Model, Row, StepOutput
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.progress import Progress
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Text:
    """A prompt and the target's greedy answer, as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def write(
    target: Model, tokenizer: Tokenizer, prompts: Sequence[str], num_tokens: int, progress: Progress
) -> list[Text]:
    """Return the target's greedy answers of at most `num_tokens` tokens.

    Prompts that do not fit are left out.
    """
    fitting = [ids for p in prompts if len(ids := encode(tokenizer, p)) + num_tokens <= target.max_context]
    generations = [Generation([*ids], SamplingParams(), num_tokens, tokenizer.eos_ids) for ids in fitting]
    total = max(1, num_tokens * len(fitting))
    for number, _ in enumerate(Engine(target).run(generations)):
        progress("the target writes", min(number / total, 1.0))
    return [
        Text(tuple(g.tokens[: g.num_prompt_tokens]), tuple(g.tokens[g.num_prompt_tokens :]))
        for g in generations
    ]


def along(draft: Model, texts: Sequence[Text]) -> Iterator[tuple[StepOutput, tuple[int, ...]]]:
    """Yield for each text the draft's logits [n, vocab] that predict the answer, and the answer's n tokens.

    A prompt that does not fit the draft loses its beginning. Texts without an answer are left out.
    """
    for text in texts:
        room = draft.max_context - len(text.answer)
        before = text.prompt[-room:] if room > 0 else ()
        if not before or not text.answer:
            continue
        handle = draft.open(len(before) + len(text.answer))
        try:
            if before[:-1]:
                draft.step([Row(handle, Block.chain(before[:-1]), logits="none")])
                draft.commit(handle, range(len(before) - 1))
            output = draft.step([Row(handle, Block.chain((before[-1], *text.answer[:-1])))])
            yield output, text.answer
        finally:
            draft.close(handle)
