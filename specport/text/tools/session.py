"""Prepare one request with tools: its prompt, its grammar, and the parser of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specport.errors import InvalidInput, UnusableTools
from specport.text.grammar.grammar import Grammar
from specport.text.tokenizer import Tokenizer
from specport.text.tools import prompt
from specport.text.tools.call_grammar import call_grammar
from specport.text.tools.definitions import NONE, Tool, ToolCall, parse_choice, parse_tools
from specport.text.tools.parser import ToolParser
from specport.text.tools.syntax import GENERIC, Syntax, of_template


@dataclass(frozen=True)
class ToolSession:
    """Hold what a request with tools needs. Made by `prepare`.

    prompt:  token ids of the conversation, up to where the answer starts.
    grammar: what the answer is held to; None = nothing.
    shown:   control tokens that are part of the answer's text, since its calls are marked by them.
    """

    prompt: list[int]
    grammar: Grammar | None
    syntax: Syntax
    tools: tuple[Tool, ...]
    shown: frozenset[int] = frozenset()

    def parser(self) -> ToolParser:
        """Return a new parser of the answer, for text as it streams."""
        return ToolParser(self.syntax, self.tools)

    def parse(self, text: str) -> tuple[str, list[ToolCall]]:
        """Return the content and the calls of a whole answer."""
        parser = self.parser()
        parser.feed(text)
        parser.finish()
        return parser.content, parser.calls


def prepare(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any] | None,
    tokenizer: Tokenizer,
    *,
    parallel: bool = True,
    grammar: Grammar | None = None,
) -> ToolSession:
    """Return the session of a conversation with tools.

    messages:    OpenAI's, with assistant messages that have tool_calls, and messages of the role "tool".
    tools, tool_choice: OpenAI's. None = "auto" where there are tools.
    parallel:    whether the answer may have several calls, where a grammar holds it.
    grammar:     what the answer is held to where no call is asked for.

    Raises InvalidInput; UnusableTools where the answer cannot be held to the tools.
    """
    known = parse_tools(tools)
    choice = parse_choice(tool_choice, known)
    offered = () if choice == NONE else known
    syntax = of_template(tokenizer.template_source) if tokenizer.takes_tools else GENERIC
    try:
        held = call_grammar(syntax, offered, choice, parallel=parallel, special=tokenizer.special_id)
    except InvalidInput as error:
        raise UnusableTools(error.message, error.hint) from error
    if held is not None and grammar is not None:
        raise UnusableTools(
            "a grammar for the answer cannot be combined with tools that are strict or required"
        )
    if tokenizer.takes_tools:
        texts = prompt.for_template(messages)
        ids = tokenizer.chat(texts, tools=[tool.as_openai() for tool in offered] or None)
    else:
        ids = tokenizer.chat(prompt.as_text(messages, offered))
    shown = {tokenizer.special_id(marker) for marker in syntax.markers} - {None} if offered else set()
    return ToolSession(ids, held or grammar, syntax, offered, frozenset(i for i in shown if i is not None))
