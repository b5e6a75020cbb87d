"""The grammar of a CodeAgent's steps: what it allows and forbids, by the matcher itself."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("smolagents")
pytest.importorskip("llguidance")
from smolagents import Tool
from support.tiny import tiny_models

from specport.agents.code_steps import code_step
from specport.text.grammar.grammar import Grammar
from specport.text.grammar.matcher import Vocabulary
from specport.text.tokenizer import load_tokenizer


class Find(Tool):
    name = "find"
    description = "Finds"
    inputs = {  # noqa: RUF012
        "query": {"type": "string", "description": "words", "maxLength": 8},
        "kind": {"type": "string", "description": "which", "enum": ["it's", "b"], "nullable": True},
        "most": {"type": "integer", "description": "how many", "nullable": True},
    }
    output_type = "string"

    def forward(self, query: str, kind: Any = None, most: Any = None) -> str:
        return ""


class Mark(Tool):
    name = "mark"
    description = "Has no input that is needed"
    inputs = {  # noqa: RUF012
        "on": {"type": "boolean", "description": "whether", "nullable": True},
        "sizes": {"type": "array", "description": "some", "items": {"type": "number"}, "nullable": True},
        "data": {"type": "object", "description": "more", "nullable": True},
    }
    output_type = "string"

    def forward(self, on: Any = None, sizes: Any = None, data: Any = None) -> str:
        return ""


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_models.save_tokenizer(folder)
    return Vocabulary(load_tokenizer(folder))


def allows(vocabulary: Vocabulary, grammar: Grammar, text: str) -> bool:
    matcher = vocabulary.matcher(grammar.compiled())
    tokens = vocabulary(text)
    return (
        matcher.validate_tokens(tokens) == len(tokens)
        and matcher.consume_tokens(tokens)
        and matcher.is_accepting()
    )


GOOD = (
    'print(find(query="a b"))', 'print(find(query="x", kind="it\'s"))', 'print(find(query="x", most=-3))',
    'print(find(query="x", kind=None, most=None))', "print(mark())", "print(mark(sizes=[1.5, 20], data={}))",
    'print(mark(on=True, data={"a": "b", "c": 2}))', "print(12 + 30.5 * 2)", 'final_answer("42")',
)  # fmt: skip
BAD = (
    'find(query="x")', 'print(find("x"))', 'print(find(query="123456789"))', "print(find(kind=None))",
    'print(find(query="x", kind="c"))', 'print(find(query="a"b"))', "print(mark(, on=True))",
    "print(012 + 1)", "print(1)", 'print(open("x"))', "import os",
    'final_answer("1")\nprint(1 + 1)', "print(mark(on=true))",
)  # fmt: skip


def test_lines(vocabulary: Vocabulary) -> None:
    grammar = code_step([Find(), Mark()])
    found = {
        line for line in (*GOOD, *BAD) if allows(vocabulary, grammar, f"Thought: so\n<code>\n{line}\n</code>")
    }
    assert found == {*GOOD}
    for line in GOOD:
        compile(line, "step", "exec")


def test_the_frame_of_a_step(vocabulary: Vocabulary) -> None:
    grammar = code_step([Find()], ("```python", "```"))
    step = "Thought: so\n```python\nprint(1 + 1)\n```"
    assert allows(vocabulary, grammar, step)
    for other in (
        step.replace("Thought: so", "Thought: "),
        step + "x",
        step.replace("so", "a\nb"),
        step[:-4],
    ):
        assert not allows(vocabulary, grammar, other)
