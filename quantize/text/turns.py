"""User's turns for the target to answer: the user's prompts, openings to complete, and passages.

The target completes short openings itself, sampled so that the turns differ. Such turns are short, so every
other made-up shard asks about a passage (`passages`). The user's own prompts are answered once each, and
shards of them alternate with made-up ones: a draft that has seen short prompts only would not learn to copy
from long ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from specport.quantize.text import passages

from specport.text.tokenizer import Tokenizer

SHARD = 32  # dialogues of a shard
OWN, OPENED, PASSAGE = "own", "opened", "passage"  # kinds of turns; a shard holds one kind
MADE_UP = (OPENED, PASSAGE)  # they alternate
# Beginnings of a turn, by the most tokens that the target adds.
OPENINGS = {
    48: (
        "Write a Python function that", "Write a short story about", "Explain how",
        "What is the difference between", "A shop sells", "If a train leaves", "Who was", "Why do",
        "How do I", "Compose an email to", "Give me a list of", "Write a SQL query that", "Describe the",
        "What are the main causes of", "Solve the equation", "Act as a", "Which", "Is it true that",
        "Create a plan for", "In JavaScript,", "Compare", "When did", "Implement", "Tell me about",
        "Let x be", "Suggest", "Where is", "How many", "Maria has", "A factory produces",
        "Imagine that you are", "Translate into German:", "Translate into English: Die",
        "Translate into English: Der", "Translate into English: Wir", "Translate into English: El",
    ),
    128: (
        "Summarize this article:\n\n", "Summarize this paragraph in one sentence:\n\n",
        "Fix the bug in this code:", "Rewrite this text more formally:",
        "Answer with the help of this passage:\n\n",
        "Read the text and answer the question behind it.\n\n", "Explain what this code does:",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """A user's turn.

    text:  the turn, or the opening that the target completes.
    limit: most tokens that the target adds to an opening; 0 = the turn is complete.
    seed:  of the sampling of these tokens, and of a sampled answer.
    temperature: of the answer; 0 = greedy.
    """

    text: str
    limit: int = 0
    seed: int = 0
    temperature: float = 0.0


def plan_shards(
    prompts: Sequence[str], seed: int, *, made_up: bool = True, temperature: float = 0.0
) -> Iterator[tuple[str, list[Turn]]]:
    """Yield the name and the turns of each shard; infinitely many where turns are made up.

    prompts: the user's own turns, in every other shard as long as there are any, shuffled by the seed.
    made_up: whether to add openings and passages.
    temperature: of the answers.
    A shard depends on its number, the seed and the prompts only.
    """
    for number, (name, asked) in enumerate(_plan(prompts, seed, made_up)):
        if temperature:
            drawn = np.random.default_rng([seed, number, len(MADE_UP)]).integers(2**31, size=len(asked))
            yield (
                name,
                [
                    replace(turn, temperature=temperature, seed=turn.seed or int(own))
                    for turn, own in zip(asked, drawn, strict=True)
                ],
            )
        else:
            yield name, asked


def _plan(prompts: Sequence[str], seed: int, made_up: bool) -> Iterator[tuple[str, list[Turn]]]:
    """Yield as `plan_shards`, with greedy answers."""
    distinct = [*dict.fromkeys(prompts)]
    shuffled = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
    own = [shuffled[i : i + SHARD] for i in range(0, len(shuffled), SHARD)]
    for number in itertools.count() if made_up else range(len(own)):
        if number < len(own):
            yield f"{OWN}-{number:05}", [Turn(text) for text in own[number]]
        if not made_up:
            continue
        kind, place = MADE_UP[number % 2], number // 2
        rng = np.random.default_rng([seed, place + 1, MADE_UP.index(kind)])
        if kind == PASSAGE:
            yield f"{kind}-{place:05}", [Turn(passages.turn(rng)) for _ in range(SHARD)]
        else:
            yield f"{kind}-{place:05}", _openings(rng)


def _openings(rng: np.random.Generator) -> list[Turn]:
    """Return a shard of openings, chosen with replacement, each with a seed of its own."""
    known = [(opening, limit) for limit, openings in OPENINGS.items() for opening in openings]
    chosen = [known[i] for i in rng.integers(len(known), size=SHARD)]
    return [Turn(opening, limit, int(rng.integers(2**31))) for opening, limit in chosen]


def opening_ids(tokenizer: Tokenizer, opening: str) -> list[int]:
    """Return the ids of a chat up to the opening of its first user's turn, which stays open."""
    if not tokenizer.has_chat_template:
        return tokenizer.encode(opening)
    stem = opening.rstrip()  # some templates strip spaces off a turn
    text = tokenizer.render([{"role": "user", "content": stem}], add_generation_prompt=False)
    return tokenizer.encode(text[: text.rindex(stem)] + opening)
