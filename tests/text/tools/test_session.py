"""Requests with tools: prompts by the model's template or without one, choices, grammars, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from support import tool_templates
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from specport.errors import InvalidInput
from specport.text.grammar.grammar import Grammar
from specport.text.grammar.matcher import GrammarConstraint, Vocabulary
from specport.text.tokenizer import Tokenizer
from specport.text.tools.session import ToolSession, prepare

ROOT = Path(__file__).parent
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"], "additionalProperties": False}  # fmt: skip
WEATHER: dict[str, Any] = {"type": "function", "function": {
    "name": "weather", "description": "Says the weather", "parameters": CITY,
}}  # fmt: skip
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
NOW = {"type": "function", "function": {"name": "now"}}
ASK = [{"role": "user", "content": "Rain?"}]
CALLED = [
    *ASK,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "abcdefghi", "type": "function",
         "function": {"name": "weather", "arguments": '{"city": "Köln"}'}},
    ]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": [{"type": "text", "text": "rain"}]},
]  # fmt: skip
MARKED = {"<tool_call>": False, "</tool_call>": False, "<|python_tag|>": True, "[TOOL_CALLS]": True,
          "<|im_end|>": True}  # fmt: skip
TEMPLATES = {
    "hermes": tool_templates.HERMES, "llama3": tool_templates.LLAMA3, "mistral": tool_templates.MISTRAL,
    "qwen-xml": tool_templates.QWEN_XML, "generic": tool_templates.PLAIN,
}  # fmt: skip
CALL = '{"name": "weather", "arguments": {"city": "Köln", "days": 2}}'
WRITTEN = {
    "hermes": f"<tool_call>\n{CALL}\n</tool_call>",
    "generic": f"<tool_call>\n{CALL}\n</tool_call>",
    "llama3": CALL.replace("arguments", "parameters"),
    "mistral": f"[TOOL_CALLS][{CALL}]",
    "qwen-xml": "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</tool_call>",
}


def tokenizer(name: str, *, marked: bool = True) -> Tokenizer:
    """Return a byte-level tokenizer with a template; its markers are tokens as in the model families."""
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    for text, special in MARKED.items():
        if marked or text == "<|im_end|>":
            backend.add_tokens([AddedToken(text, special=special, normalized=False)])
    end = backend.token_to_id("<|im_end|>")
    return Tokenizer(backend, eos_ids=[end], chat_template=TEMPLATES[name])


def prompt(session: ToolSession, words: Tokenizer) -> str:
    return words.decode(session.prompt)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_and_their_syntax(name: str) -> None:
    words = tokenizer(name)
    assert words.takes_tools == (name != "generic")
    session = prepare(CALLED, [WEATHER, NOW], None, words)
    assert session.syntax.name == name and session.grammar is None
    text = prompt(session, words)
    assert "Says the weather" in text and '"name": "now"' in text and "Rain?" in text and "rain" in text
    assert '{"city": "Köln"}' in text  # arguments as an object, not as a string of one
    # Without tools, earlier calls and results are still in the prompt.
    without = prompt(prepare(CALLED, [], None, words), words)
    assert "Says the weather" not in without and '{"city": "Köln"}' in without and "rain" in without
    chosen = prepare(ASK, [WEATHER], "none", words)
    assert "Says the weather" not in prompt(chosen, words) and not chosen.tools and chosen.grammar is None


def test_a_template_without_tools_gets_them_as_text() -> None:
    words = tokenizer("generic")
    text = prompt(
        prepare([{"role": "system", "content": "Be kind."}, *CALLED], [WEATHER], "auto", words), words
    )
    assert text.startswith("system: Be kind.\n\nYou may call functions") and text.endswith("assistant: ")
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>' in text
    assert "user: <tool_response>\nrain\n</tool_response>" in text
    two = [*CALLED, {"role": "tool", "content": "sun"}]
    assert prompt(prepare(two, [], None, words), words).count("user: ") == 2  # results are one turn


def accepts(session: ToolSession, words: Tokenizer, text: str, *, special: bool = True) -> bool:
    """Return whether the session's grammar accepts a whole text, its control tokens as tokens."""
    assert session.grammar is not None
    constraint = GrammarConstraint(Vocabulary(words), session.grammar.compiled(), 0)
    ids = words._ids(text, False, special)
    matcher = constraint._matcher
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize("marked", [True, False], ids=["control tokens", "text"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_required_call_is_held_to_syntax_and_schema(name: str, marked: bool) -> None:
    words = tokenizer(name, marked=marked)
    session = prepare(ASK, [WEATHER, NOW], "required", words)
    text = WRITTEN[name]
    assert accepts(session, words, text)
    content, calls = session.parse(text)
    assert content == "" and [(c.name, json.loads(c.arguments)) for c in calls] == [
        ("weather", {"city": "Köln", "days": 2})
    ]
    changed = [text.replace(*words) for words in (("weather", "whether"), ("2", '"x"'), ("city", "town"))]
    for wrong in ("Hello", *changed, text + " And now?"):
        assert not accepts(session, words, wrong), wrong
    if marked:
        assert session.shown == {words.special_id(m) for m in session.syntax.markers if MARKED[m]}
    named = prepare(ASK, [WEATHER, NOW], {"type": "function", "function": {"name": "now"}}, words)
    assert not accepts(named, words, text)
    now = text.replace("weather", "now").replace('{"city": "Köln", "days": 2}', "{}")
    if name != "qwen-xml":
        assert accepts(named, words, now)
        twice = {"mistral": "[TOOL_CALLS][X, X]", "llama3": ""}.get(name, f"{now}\n{now}")
        inner = now.removeprefix("[TOOL_CALLS][").removesuffix("]")
        if twice := twice.replace("X", inner):
            assert accepts(named, words, twice)
            assert not accepts(prepare(ASK, [NOW], "required", words, parallel=False), words, twice)


@pytest.mark.parametrize("marked", [True, False], ids=["control tokens", "text"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_strict_tool_is_held_once_a_call_has_begun(name: str, marked: bool) -> None:
    words = tokenizer(name, marked=marked)
    assert prepare(ASK, [WEATHER], "auto", words).grammar is None
    session = prepare(ASK, [STRICT, NOW], "auto", words)
    text = WRITTEN[name]
    for good in ("", "No rain: 1 < 2.\n\n- ok", text):
        assert accepts(session, words, good), good
    if name != "llama3":
        assert accepts(session, words, f"I look.\n{text}")
        if name not in ("mistral",):
            assert accepts(session, words, f"{text}\n{text}\nDone.")
    for wrong in (text.replace("weather", "whether"), text.replace("2", '"x"'), text.replace("city", "town")):
        assert not accepts(session, words, wrong), wrong


def test_a_schema_that_cannot_be_held() -> None:
    words = tokenizer("hermes")
    odd = {"name": "odd", "parameters": {"type": "object", "not": {"required": ["a"]}}}
    session = prepare(ASK, [odd], "required", words)  # any object then
    assert accepts(session, words, '<tool_call>\n{"name": "odd", "arguments": {"b": [1]}}\n</tool_call>')
    with pytest.raises(InvalidInput, match="tool odd is strict, but the JSON schema cannot be used: Unimpl"):
        prepare(ASK, [{**odd, "strict": True}], "auto", words)


def test_references_between_schemas() -> None:
    words = tokenizer("hermes")
    place = {"type": "object", "properties": {"at": {"$ref": "#/$defs/place"}}, "required": ["at"],
             "additionalProperties": False, "$defs": {"place": {"enum": ["here", "there"]}}}  # fmt: skip
    session = prepare(ASK, [{"name": "go", "parameters": place}, NOW], "required", words)
    text = '<tool_call>\n{"name": "go", "arguments": {"at": "here"}}\n</tool_call>'
    assert accepts(session, words, text) and not accepts(session, words, text.replace("here", "where"))
    other = {**place, "$defs": {"place": {"enum": ["x"]}}}
    with pytest.raises(InvalidInput, match="rename it"):
        prepare(
            ASK, [{"name": "go", "parameters": place}, {"name": "no", "parameters": other}], "required", words
        )


WRONG: dict[str, tuple[Any, Any, str]] = {
    "no list": ({"name": "x"}, None, "tools is not a list"),
    "no function": ([{"type": "web_search"}], None, "a tool is no function"),
    "no name": ([{"type": "function", "function": {}}], None, "a tool is named None"),
    "name": ([{"name": "a b"}], None, "a tool is named 'a b'"),
    "reserved": ([{"name": "auto"}], None, "cannot be named"),
    "twice": ([NOW, NOW], None, "two tools are named now"),
    "parameters": ([{"name": "a", "parameters": "x"}], None, "are no JSON schema"),
    "many": ([NOW] * 200, None, "200 tools"),
    "choice": ([NOW], "always", "tool_choice is 'always'"),
    "unknown": ([NOW], {"type": "function", "function": {"name": "x"}}, "names 'x'"),
    "nothing to require": ([], "required", "there are no tools"),
}


@pytest.mark.parametrize(("tools", "choice", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_used_is_refused(tools: Any, choice: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        prepare(ASK, tools, choice, tokenizer("hermes"))


@pytest.mark.parametrize("name", ["hermes", "generic"])
def test_messages_that_cannot_be_used(name: str) -> None:
    words = tokenizer(name)
    for wrong in (
        {"content": 3}, {"content": [{"type": "image_url", "image_url": {}}]}, {"tool_calls": "x"},
        {"tool_calls": [3]}, {"tool_calls": [{"function": 3}]}, {"tool_calls": [{"function": {"name": 3}}]},
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            prepare([*ASK, {"role": "assistant", **wrong}], [NOW], None, words)
    # Arguments that the model itself has broken are given back to it as they are.
    broken = {"function": {"name": "now", "arguments": '{"a'}}
    assert '{\\"a' in prompt(prepare([{"role": "assistant", "tool_calls": [broken]}], [], None, words), words)


def test_a_grammar_of_the_answer() -> None:
    words, grammar = tokenizer("hermes"), Grammar.regex("[a-z]+")
    assert prepare(ASK, [NOW], "auto", words, grammar=grammar).grammar is grammar
    with pytest.raises(InvalidInput, match="cannot be combined"):
        prepare(ASK, [NOW], "required", words, grammar=grammar)
