"""The syntaxes in which models write calls, and which of them a chat template teaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Syntax:
    """Describe how a model writes calls.

    opening, closing: markers around a call; closing may be empty.
    arguments: key of the arguments in a call's JSON object.
    body:      "json": an object with name and arguments; "xml": <function=NAME><parameter=KEY>...
    array:     whether the objects of several calls stand in one array.
    bare:      whether a text that begins with such an object is a call without markers.
    blank:     what stands between a marker and the body.
    short_ids: whether the template wants call ids of nine letters and digits.
    """

    name: str
    opening: str
    closing: str = ""
    arguments: str = "arguments"
    body: Literal["json", "xml"] = "json"
    array: bool = False
    bare: bool = False
    blank: str = ""
    short_ids: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(marker for marker in (self.opening, self.closing) if marker)


HERMES = Syntax("hermes", "<tool_call>", "</tool_call>", blank="\n")
QWEN_XML = Syntax("qwen-xml", "<tool_call>", "</tool_call>", body="xml", blank="\n")
LLAMA3 = Syntax("llama3", "<|python_tag|>", arguments="parameters", bare=True)
MISTRAL = Syntax("mistral", "[TOOL_CALLS]", array=True, short_ids=True)
# For templates that know no tools, and for those whose syntax is not known: that of Hermes, or bare JSON.
GENERIC = Syntax("generic", "<tool_call>", "</tool_call>", bare=True, blank="\n")


def of_template(template: str) -> Syntax:
    """Return the syntax that a chat template with tools teaches its model."""
    if "<tool_call>" in template:
        return QWEN_XML if "<function=" in template else HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<|python_tag|>" in template or '"parameters": ' in template:
        return LLAMA3
    return GENERIC
