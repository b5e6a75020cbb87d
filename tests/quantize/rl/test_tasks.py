"""The rewards that programs compute."""

from __future__ import annotations

import random
import re

import pytest
from specport.quantize.rl import tasks

from specport.errors import InvalidInput


def test_a_sum() -> None:
    task = tasks.add(random.Random(1))
    a, b = map(int, re.findall(r"\d+", task.prompt))
    right, wrong = str(a + b), str(a + b + 1)
    assert task.reward(f"{a} + {b} is {right}.") == 1.0 == task.reward(right)
    assert task.reward(f"The answer is {wrong}.") == pytest.approx(0.2) == task.reward("9" * 5000)
    assert task.reward("It is five") == 0.0 == task.reward("") == task.reward(f"{right} apples")


def test_counting() -> None:
    task = tasks.count(random.Random(2))
    first, last = map(int, re.findall(r"\d+", task.prompt))
    numbers = [str(n) for n in range(first, last + 1)]
    assert task.reward(", ".join(numbers)) == 1.0 == task.reward(",".join(numbers) + ".")
    assert task.reward(", ".join(numbers[:-1])) == pytest.approx(1 - 0.8 / len(numbers))
    assert task.reward(", ".join([*numbers, "99"])) == pytest.approx(
        0.2 + 0.8 * len(numbers) / (len(numbers) + 1)
    )
    assert task.reward("Here: " + ", ".join(numbers)) == 0.0


def test_repeating() -> None:
    task = tasks.repeat(random.Random(3))
    found = re.search(r'"(\w+)" (\d+)', task.prompt)
    assert found
    word, times = found[1], int(found[2])
    assert task.reward(" ".join([word] * times)) == 1.0
    assert task.reward(word) == pytest.approx(0.2 + 0.8 / times)
    assert task.reward(f"{word} x") == 0.0 == task.reward(" . ")


def test_tasks_of_a_step_are_always_the_same() -> None:
    kinds = tuple(tasks.KINDS)
    first, again, other = (tasks.tasks(kinds, 4, 7, step) for step in (5, 5, 6))
    assert [t.prompt for t in first] == [t.prompt for t in again] != [t.prompt for t in other]
    assert len({t.prompt.split()[0:3][-1] for t in first}) > 1  # kinds take turns
    with pytest.raises(InvalidInput, match="no tasks 'sing'"):
        tasks.tasks(("sing",), 1, 0, 0)
