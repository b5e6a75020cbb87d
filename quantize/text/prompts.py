"""Prompts that a draft is chosen by, and others that it is measured on.

Layers and heads must not be chosen on the prompts that the result is measured on. The two lists here have
prompts of the same kinds, for users who give none; a user's own prompts are divided instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MOST = 12  # about so many of the user's prompts to choose by, and as many to measure on

CHOOSING = (
    "Write a Python function that returns the longest common prefix of a list of strings.",
    "What causes earthquakes? Answer in a few sentences.",
    "Translate into French: We have been waiting for the bus for almost an hour.",
    "A train covers 180 km in two and a half hours. What is its average speed? Think step by step.",
    "Write a short letter to a neighbour who plays music too loudly at night.",
    "Give me three ideas for a rainy Sunday with children.",
    "Summarize in one sentence: The city council met on Monday to discuss the new bridge. After four "
    "hours of debate it agreed to build it in two stages, the first of which costs nine million.",
    "Explain what a hash table is and when it is slower than a list.",
    "Rewrite in formal English: hey, can't make it today, kid's sick, let's do it next week.",
    "Write a SQL query that lists the five customers with the highest total of orders.",
    "Who wrote 'The Origin of Species', and what is its main idea?",
    "Fix this Python code: for i in range(len(xs)) if xs[i] > 3: print(xs[i])",
)
HELD_OUT = (
    "Write a Python function that counts the words of a text file and prints the ten commonest.",
    "Why is the sky dark at night although there are so many stars?",
    "Translate into German: The meeting has been moved to Friday because two colleagues are ill.",
    "A shirt costs 40 euros after a discount of 20 percent. What did it cost before? Think step by step.",
    "Write a friendly reminder that an invoice has not been paid.",
    "Plan a weekend in Lisbon for two people who like music.",
    "Summarize in one sentence: Researchers have found that bees which sleep too little dance less "
    "precisely. They kept some of them awake with a magnet and compared the dances of the next morning.",
    "Explain the difference between a process and a thread to a beginner.",
)


class Division(NamedTuple):
    """Prompts by their use.

    choosing: to choose layers and head by. held_out: to measure on, and for nothing else.
    to_learn: for the target to answer; the draft learns from that.
    """

    choosing: tuple[str, ...]
    held_out: tuple[str, ...]
    to_learn: tuple[str, ...]


def divide(prompts: Sequence[str]) -> Division:
    """Divide the user's prompts by use.

    Files are often sorted by category, so each use takes evenly spread ones. One prompt alone is learnt from,
    and built-in ones are held out.
    """
    if not prompts:
        return Division(CHOOSING, HELD_OUT, ())
    distinct = tuple(dict.fromkeys(prompts))
    step = max(2, len(distinct) // MOST)
    held_out = distinct[1::step]
    return Division(distinct[::step], held_out or HELD_OUT, tuple(p for p in distinct if p not in held_out))
