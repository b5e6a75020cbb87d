"""Makes arithmetic word problems of several steps, and checks answers. A seed gives the same problems.

In the manner of GSM8K (arXiv 2110.14168): whole numbers, everyday words, one number as the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

QUESTION = "{story}\n\nThink step by step in a few short lines. End with a line 'Answer: ' and the number."
_NAMES = ("Anna", "Ben", "Carla", "David", "Elif", "Farid", "Grace", "Hugo", "Ines", "Jonas")
_THINGS = ("apples", "stamps", "marbles", "books", "cards", "shells", "coins", "pencils", "eggs", "photos")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class WordProblem:
    """Hold a problem. story: its text. answer: the number."""

    id: str
    story: str
    answer: int

    @property
    def question(self) -> str:
        """Return the user's turn."""
        return QUESTION.format(story=self.story)

    def right(self, text: str) -> bool:
        """Return whether an answer ends with the number: behind the last "Answer:", or the last one."""
        _, found, behind = text.rpartition("Answer:")
        numbers = _NUMBER.findall(behind if found else text)
        if not numbers:
            return False
        chosen = numbers[0] if found else numbers[-1]
        return float(chosen.replace(",", "")) == self.answer


Step = Callable[[random.Random, int, str], tuple[str, int] | None]


def _bought(rng: random.Random, have: int, things: str) -> tuple[str, int]:
    boxes, each = rng.randint(3, 9), rng.randint(4, 12)
    return f"buys {boxes} boxes with {each} {things} each", have + boxes * each


def _given(rng: random.Random, have: int, things: str) -> tuple[str, int] | None:
    friends, each = rng.randint(2, 6), rng.randint(2, 9)
    if friends * each >= have:
        return None
    return f"gives {each} {things} to each of {friends} friends", have - friends * each


def _shared(rng: random.Random, have: int, things: str) -> tuple[str, int] | None:
    parts = [n for n in range(2, 7) if have % n == 0 and have // n >= 5]
    if not parts:
        return None
    count = rng.choice(parts)
    return f"puts all {things} into {count} equal bags and keeps only one bag", have // count


def _found(rng: random.Random, have: int, things: str) -> tuple[str, int]:
    more = rng.randint(11, 48)
    return f"finds {more} more {things}", have + more


def _lost(rng: random.Random, have: int, things: str) -> tuple[str, int] | None:
    less = rng.randint(7, 29)
    return None if less >= have else (f"loses {less} {things}", have - less)


def _doubled(rng: random.Random, have: int, things: str) -> tuple[str, int] | None:
    times = rng.choice((2, 3))
    word = {2: "twice", 3: "three times"}[times]
    return None if have > 150 else (f"trades them, so as to have {word} as many {things}", times * have)


STEPS: Sequence[Step] = (_bought, _given, _shared, _found, _lost, _doubled)


def make(count: int, steps: int, seed: int = 0) -> list[WordProblem]:
    """Return problems of so many steps each."""
    rng = random.Random(seed)
    return [_one(rng, f"words/{seed}/{steps}/{i}", steps) for i in range(count)]


def _one(rng: random.Random, name: str, steps: int) -> WordProblem:
    who, things, have = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(12, 60)
    lines, last = [f"{who} has {have} {things}."], None
    while len(lines) <= steps:
        step = rng.choice([each for each in STEPS if each is not last])
        made = step(rng, have, things)
        if made is None:
            continue
        told, have = made
        lines.append(f"{'Then' if len(lines) > 1 else 'First'} {who} {told}.")
        last = step
    lines.append(f"How many {things} does {who} have now?")
    return WordProblem(name, " ".join(lines), have)
