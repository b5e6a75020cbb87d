"""Tasks for small models whose reward a program computes: sums, counting, and repeating a word.

Rewards are between 0 and 1: part of it for the form that the prompt asks for, the rest for the content. So a
model that is seldom right still has samples that differ.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from specport.errors import InvalidInput

_FORM = 0.2  # share of the reward
_WORDS = ("apple", "blue", "cat", "door", "fish", "green", "house", "moon", "river", "stone", "tree", "water")


@dataclass(frozen=True)
class Task:
    """Hold a prompt, and the function that rates an answer to it, 0 to 1."""

    prompt: str
    reward: Callable[[str], float]


def add(rng: random.Random) -> Task:
    """Return the task to add two numbers; the answer is a sentence that ends with the sum."""
    a, b = rng.randint(1, 20), rng.randint(1, 20)

    def reward(text: str) -> float:
        found = re.search(r"(\d+)\W*$", text.strip())
        return (_FORM + (1 - _FORM) * (int(found[1][:9]) == a + b)) if found else 0.0

    return Task(f"What is {a} + {b}? Answer with one short sentence that ends with the result.", reward)


def count(rng: random.Random) -> Task:
    """Return the task to write some numbers in order; what counts is how far the list is right."""
    first = rng.randint(1, 30)
    last = first + rng.randint(3, 8)
    want = [str(n) for n in range(first, last + 1)]

    def reward(text: str) -> float:
        if not re.fullmatch(r"\d+(, ?\d+)*\.?", text.strip()):
            return 0.0
        return _FORM + (1 - _FORM) * _beginning(re.findall(r"\d+", text), want)

    return Task(f"Write the numbers from {first} to {last}, separated by commas, and nothing else.", reward)


def repeat(rng: random.Random) -> Task:
    """Return the task to write a word several times; what counts is how far that is right."""
    word, times = rng.choice(_WORDS), rng.randint(3, 8)

    def reward(text: str) -> float:
        words = text.strip().rstrip(".").split()
        if not words or len({*words}) > 1:
            return 0.0
        return _FORM + (1 - _FORM) * _beginning(words, [word] * times)

    return Task(f'Write the word "{word}" {times} times, separated by spaces, and nothing else.', reward)


KINDS: dict[str, Callable[[random.Random], Task]] = {"add": add, "count": count, "repeat": repeat}


def tasks(kinds: tuple[str, ...], number: int, seed: int, step: int) -> list[Task]:
    """Return the tasks of a step: always the same for the same arguments; the kinds take turns.

    Raises InvalidInput for a kind that does not exist.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InvalidInput(f"there are no tasks {kind!r}", f"choose of {', '.join(KINDS)}")
    rng = random.Random(f"{seed} {step}")
    return [KINDS[kinds[(step * number + i) % len(kinds)]](rng) for i in range(number)]


def _beginning(found: list[str], want: list[str]) -> float:
    """Return the length of the common beginning as a share of the longer list."""
    same = next(
        (i for i, (a, b) in enumerate(zip(found, want, strict=False)) if a != b), min(len(found), len(want))
    )
    return same / max(len(found), len(want))
