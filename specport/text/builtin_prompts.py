"""What the target itself writes: the text that a draft's guesses are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specport.core.engine import Engine, Generation
from specport.core.planning.policies import Fixed
from specport.core.ports import Model, Row, StepOutput
from specport.core.sampling.sampler import SamplingParams
from specport.core.tree import TokenTree
from specport.progress import Progress
from specport.text.tokenizer import Tokenizer

BATCH = 8  # texts at once: weights are read once for all of them
# One of each common task.
PROMPTS = (
    "Write a Python function that merges two sorted lists, with a short explanation.",
    "Why does the moon have phases? Explain it to a class of ten-year-olds.",
    "Translate into German: The train was late because of the snow, so we missed the last bus.",
    "A farmer sells 48 eggs in April and half as many in May. How many in both? Think step by step.",
    "Write a polite e-mail that asks to move Tuesday's meeting to Thursday afternoon.",
)


@dataclass(frozen=True)
class Text:
    """What the target wrote, greedily, behind a prompt. Token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def write(
    target: Model, tokenizer: Tokenizer, prompts: Sequence[str], num_tokens: int, progress: Progress
) -> list[Text]:
    """The target's own greedy answers, at most `num_tokens` each; prompts that are too long are left out."""
    fitting = [ids for p in prompts if len(ids := encode(tokenizer, p)) + num_tokens <= target.max_context]
    engine = Engine(target)
    texts: list[Text] = []
    for start in range(0, len(fitting), BATCH):
        group = [
            Generation([*ids], engine.open(), SamplingParams(), Fixed(0), num_tokens, tokenizer.eos_ids)
            for ids in fitting[start : start + BATCH]
        ]
        total = num_tokens * len(fitting)
        try:
            for number, _ in enumerate(engine.run(group), start=start * num_tokens):
                progress("the target writes", min(number / total, 1.0))
        finally:
            for generation in group:
                engine.close(generation.handle)
        texts += [
            Text(tuple(g.tokens[: g.num_prompt_tokens]), tuple(g.tokens[g.num_prompt_tokens :]))
            for g in group
        ]
    return texts


def encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of a prompt, as the user's turn where the model has turns."""
    if tokenizer.has_chat_template:
        return tokenizer.chat([{"role": "user", "content": prompt}])
    return tokenizer.encode(prompt)


def along(draft: Model, texts: Sequence[Text]) -> Iterator[tuple[StepOutput, tuple[int, ...]]]:
    """What the draft gives before each token of an answer, [n, vocab], and the answer's n tokens."""
    for text in texts:
        room = draft.max_context - len(text.answer)
        before = text.prompt[-room:] if room > 0 else ()
        if not before or not text.answer:
            continue
        handle = draft.open(len(before) + len(text.answer))
        try:
            if before[:-1]:
                draft.step([Row(handle, TokenTree.chain(before[:-1]), logits="last")])
                draft.commit(handle, range(len(before) - 1))
            output = draft.step([Row(handle, TokenTree.chain((before[-1], *text.answer[:-1])))])
            yield output, text.answer
        finally:
            draft.close(handle)
