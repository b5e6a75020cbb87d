"""Calls read out of streamed text: every syntax, any cut of the stream, and what is no call."""

from __future__ import annotations

import json
from random import Random

import pytest

from specport.text.tools import syntax
from specport.text.tools.definitions import Tool
from specport.text.tools.json_value import MAX_DEPTH, JsonValue, Step
from specport.text.tools.parser import MAX_CALL, CallDelta, TextDelta, ToolParser

WEATHER = Tool("weather", parameters={"type": "object", "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "code": {"type": "string"},
}})  # fmt: skip
TOOLS = (WEATHER, Tool("now"))
PARIS, NOW = ("weather", {"city": 'Par"is {é}', "days": 2}), ("now", {})
CALL = '{"name": "weather", "arguments": {"city": "Par\\"is {é}", "days": 2}}'
LLAMA = CALL.replace("arguments", "parameters")

# syntax, text, content, calls
TEXTS = {
    "hermes": (syntax.HERMES, f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>", "Let me see.\n", [PARIS]),
    "two": (
        syntax.HERMES,
        f'<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name": "now"}}\n</tool_call>',
        "",
        [PARIS, NOW],
    ),
    "text behind": (syntax.HERMES, f"<tool_call>{CALL}</tool_call>\nDone <b>.", "\nDone <b>.", [PARIS]),
    "not closed": (syntax.HERMES, f"<tool_call>\n{CALL}", "", [PARIS]),
    "partly closed": (syntax.HERMES, f"<tool_call>\n{CALL}\n</tool", "\n</tool", [PARIS]),
    "arguments first": (
        syntax.HERMES,
        '<tool_call>{"arguments": {"city": "Par\\"is {é}", "days": 2}, "id": [1], '
        '"name": "weather"}</tool_call>',
        "",
        [PARIS],
    ),
    "arguments as a string": (
        syntax.HERMES,
        f'<tool_call>{{"name": "weather", "arguments": {json.dumps(json.dumps(PARIS[1]))}}}</tool_call>',
        "",
        [PARIS],
    ),
    "unknown tool": (
        syntax.HERMES,
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call> x',
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call> x',
        [],
    ),
    "a name of 5,000 digits": (
        syntax.HERMES,
        f'<tool_call>{{"name": {"9" * 5000}}}',
        f'<tool_call>{{"name": {"9" * 5000}}}',
        [],
    ),
    "broken JSON": (syntax.HERMES, '<tool_call>{"name" weather}', '<tool_call>{"name" weather}', []),
    "broken in the arguments": (
        syntax.HERMES,
        'a <tool_call>{"name": "weather", "arguments": {"city": }}</tool_call> b',
        'a <tool_call>{"name": "weather", "arguments": {"city": }}</tool_call> b',
        [],
    ),
    "cut in the arguments": (
        syntax.HERMES,
        '<tool_call>{"name": "weather", "arguments": {"city": "Pa',
        '<tool_call>{"name": "weather", "arguments": {"city": "Pa',
        [],
    ),
    "a marker in a broken call": (
        syntax.HERMES,
        f"<tool_call> <tool_call>{CALL}</tool_call>",
        "<tool_call> ",
        [PARIS],
    ),
    "arguments no object": (
        syntax.HERMES,
        '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
        [],
    ),
    "null arguments": (
        syntax.HERMES,
        '<tool_call>{"name": "now", "arguments": null}</tool_call>',
        "",
        [NOW],
    ),
    "no call": (syntax.HERMES, "1 < 2, <tool, <tool_call", "1 < 2, <tool, <tool_call", []),
    "llama": (syntax.LLAMA3, f"\n{LLAMA}", "", [PARIS]),
    "llama, marked": (syntax.LLAMA3, f"<|python_tag|>{LLAMA}", "", [PARIS]),
    "llama, two": (syntax.LLAMA3, f'{LLAMA}; {{"name": "now", "parameters": {{}}}}', "", [PARIS, NOW]),
    "llama, JSON that is no call": (syntax.LLAMA3, '{"city": "Paris"}', '{"city": "Paris"}', []),
    "llama, JSON in a text": (syntax.LLAMA3, f"It is {LLAMA}", f"It is {LLAMA}", []),
    "llama, code": (syntax.LLAMA3, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    "mistral": (syntax.MISTRAL, f"Hm.[TOOL_CALLS] [{CALL}]", "Hm.", [PARIS]),
    "mistral, two": (syntax.MISTRAL, f'[TOOL_CALLS][{CALL}, {{"name": "now"}}]', "", [PARIS, NOW]),
    "mistral, named": (
        syntax.MISTRAL,
        '[TOOL_CALLS]weather[ARGS]{"city": "Par\\"is {é}", "days": 2}[TOOL_CALLS]now{}',
        "",
        [PARIS, NOW],
    ),
    "mistral, second broken": (syntax.MISTRAL, f"[TOOL_CALLS][{CALL}, oops]", " oops]", [PARIS]),
    "xml": (
        syntax.QWEN_XML,
        "ok\n<tool_call>\n<function=weather>\n<parameter=city>\nPar\"is {é}\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        "ok\n",
        [PARIS],
    ),
    "xml, a string of several lines": (
        syntax.QWEN_XML,
        "<tool_call>\n<function=weather>\n<parameter=code>\n1\n<b>\n</parameter>\n</function>\n</tool_call>",
        "",
        [("weather", {"code": "1\n<b>"})],
    ),
    "xml, broken": (
        syntax.QWEN_XML,
        "<tool_call>\n<function=weather>oops</function>",
        "<tool_call>\n<function=weather>oops</function>",
        [],
    ),
    "generic": (syntax.GENERIC, CALL, "", [PARIS]),
    "generic, marked": (syntax.GENERIC, f"I look.\n<tool_call>\n{CALL}\n</tool_call>", "I look.\n", [PARIS]),
}  # fmt: skip


def cut(text: str, random: Random) -> list[str]:
    pieces, start = [], 0
    while start < len(text):
        end = start + random.randint(1, 9)
        pieces.append(text[start:end])
        start = end
    return pieces


@pytest.mark.parametrize(("form", "text", "content", "calls"), TEXTS.values(), ids=TEXTS)
def test_content_and_calls(form: syntax.Syntax, text: str, content: str, calls: list) -> None:
    for seed in range(6):
        parser = ToolParser(form, TOOLS)
        pieces = [text] if seed == 0 else [*text] if seed == 1 else cut(text, Random(seed))
        deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
        assert parser.content == content
        assert [(call.name, json.loads(call.arguments)) for call in parser.calls] == calls
        # What was streamed is the same, and each call has an id and a name, once.
        said = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        streamed: dict[int, dict] = {}
        for delta in deltas:
            if isinstance(delta, CallDelta):
                assert (delta.index in streamed) == (delta.id is None) == (delta.name is None)
                entry = streamed.setdefault(
                    delta.index, {"id": delta.id, "name": delta.name, "arguments": ""}
                )
                entry["arguments"] += delta.arguments
        complete = [entry for entry in streamed.values() if _whole(entry["arguments"])]
        assert [(entry["name"], json.loads(entry["arguments"])) for entry in complete] == calls
        assert [entry["id"] for entry in complete] == [call.id for call in parser.calls]
        assert [*streamed] == [*range(len(streamed))]
        if len(complete) == len(streamed):
            assert said == content


def _whole(arguments: str) -> bool:
    try:
        return bool(json.loads(arguments) is not None)
    except ValueError:
        return False


def test_arguments_stream_as_they_are_written() -> None:
    parser = ToolParser(syntax.HERMES, TOOLS)
    assert parser.feed("<tool_call>\n" + CALL[:32]) == []  # the arguments have not begun
    (begun,) = parser.feed(CALL[32:45])
    assert isinstance(begun, CallDelta) and begun.name == "weather" and begun.arguments == '{"city": "Pa'[:12]
    (more,) = parser.feed(CALL[45:48])
    assert more == CallDelta(0, CALL[45:48])
    assert begun.as_openai() == {"tool_calls": [{
        "index": 0, "id": begun.id, "type": "function",
        "function": {"name": "weather", "arguments": begun.arguments},
    }]}  # fmt: skip
    assert more.as_openai() == {"tool_calls": [{"index": 0, "function": {"arguments": CALL[45:48]}}]}
    assert TextDelta("x").as_openai() == {"content": "x"}


def test_ids() -> None:
    for form, text, length in (
        (syntax.HERMES, f"<tool_call>{CALL}", 29),
        (syntax.MISTRAL, f"[TOOL_CALLS][{CALL}", 9),
    ):
        parser = ToolParser(form, TOOLS)
        parser.feed(text)
        assert len(parser.calls[0].id) == length and parser.calls[0].id.replace("call_", "").isalnum()


def test_what_is_too_large_or_deep_is_text() -> None:
    for inner in ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), '{"a": "' + "x" * MAX_CALL + '"}'):
        text = f'<tool_call>{{"name": "now", "x": {inner}}}</tool_call>'
        parser = ToolParser(syntax.HERMES, TOOLS)
        parser.feed(text)
        parser.finish()
        assert parser.content == text and not parser.calls


def test_any_text_is_given_back_or_read() -> None:
    random = Random(5)
    parts = ["<tool_call>", "</tool_call>", "{", "}", '"', "name", '"name": "now"', ": ", ",", "\n", "[", "]",
             "[TOOL_CALLS]", "<|python_tag|>", "<function=now>", "</function>", "x", CALL, ";",
             "\\"]  # fmt: skip
    for _ in range(1500):
        form = random.choice([syntax.HERMES, syntax.LLAMA3, syntax.MISTRAL, syntax.QWEN_XML, syntax.GENERIC])
        text = "".join(random.choice(parts) for _ in range(random.randint(1, 14)))
        found = []
        for pieces in ([text], [*text], cut(text, random)):
            parser = ToolParser(form, TOOLS)
            for piece in pieces:
                parser.feed(piece)
            parser.finish()
            found.append((parser.content, [(call.name, call.arguments) for call in parser.calls]))
        assert found[0] == found[1] == found[2]
        content, calls = found[0]
        if not calls:
            assert content == text


def test_json_is_checked_as_the_library_does() -> None:
    random = Random(2)
    parts = ['"a"', '"\\u00e9\\n"', "1", "-0.5e+3", "01", "1.", "true", "nul", "null", "{", "}", "[", "]",
    ",",
             ":", " ", '"', "\\", '"\\x"', "-"]  # fmt: skip
    good = 0
    for _ in range(4000):
        text = "".join(random.choice(parts) for _ in range(random.randint(1, 9)))
        if random.random() < 0.3:
            text = json.dumps(_random_value(random, 3), ensure_ascii=random.random() < 0.5)
        value, step, read = JsonValue(), Step.MORE, ""
        for char in text + " ":
            step = value.feed(char)
            read += char if step in (Step.MORE, Step.DONE) else ""
            if step != Step.MORE:
                break
        if step in (Step.DONE, Step.PAST):
            json.loads(read)
            good += 1
        elif step == Step.BAD:
            with pytest.raises(ValueError):  # noqa: PT011
                json.loads(text)
    assert good > 800


def _random_value(random: Random, depth: int) -> object:
    kind = random.randrange(7 if depth else 5)
    if kind < 5:
        return [None, True, random.randint(-9, 9), random.uniform(-1, 1), 'é"\\\n'][kind]
    if kind == 5:
        return [_random_value(random, depth - 1) for _ in range(random.randrange(3))]
    return {str(i): _random_value(random, depth - 1) for i in range(random.randrange(3))}
