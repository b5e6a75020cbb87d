"""Word problems are the same for a seed, their answers are right, and answers are read as people write."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
word_problems: Any = importlib.import_module("word_problems")
sys.path.pop(0)


def replayed(story: str) -> int:
    """Work a story out again, from its words."""
    have, *_ = (int(n) for n in re.findall(r"has (\d+)", story))
    for line in story.split(".")[1:]:
        numbers = [int(n) for n in re.findall(r"\d+", line)]
        if "buys" in line:
            have += numbers[0] * numbers[1]
        elif "gives" in line:
            have -= numbers[0] * numbers[1]
        elif "bags" in line:
            assert have % numbers[0] == 0
            have //= numbers[0]
        elif "finds" in line:
            have += numbers[0]
        elif "loses" in line:
            have -= numbers[0]
        elif "trades" in line:
            have *= 2 if "twice" in line else 3
    return have


def test_problems_are_fixed_by_their_seed_and_have_the_right_answer() -> None:
    problems = word_problems.make(200, 4)
    assert problems == word_problems.make(200, 4) != word_problems.make(200, 4, seed=1)
    assert len({problem.story for problem in problems}) == 200
    for problem in problems:
        assert replayed(problem.story) == problem.answer > 0
        assert problem.story.count(".") == 5 and "{" not in problem.question


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("30 + 4 = 34\nAnswer: 34", True), ("Answer: 34.", True), ("**Answer:** 34", True),
        ("Answer: 1,234", False), ("so she has 34", True), ("Answer: 33 and not 34", False), ("", False),
        ("Answer: none, 3 or 34", False), ("Answer: 3\nAnswer: 34 apples", True),
    ],
)  # fmt: skip
def test_an_answer_is_the_number_behind_the_last_word(text: str, right: bool) -> None:
    assert word_problems.WordProblem("one", "", 34).right(text) is right
    assert word_problems.WordProblem("one", "", 1234).right("Answer: 1,234")
