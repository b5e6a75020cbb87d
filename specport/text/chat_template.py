"""Render chat templates. A template comes with the model and is untrusted: it runs in jinja's sandbox, with
limits on time and memory.

The environment is the same as in transformers, so that the text is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.meta

from specport.errors import InvalidInput, ModelError
from specport.text import template_limits as limits
from specport.text.bounded_jinja import BoundedEnvironment, bounded_filter

_MOST_FORM, _SHOWN = 1000, 500


class _Generation(jinja2.ext.Extension):
    """Ignore `{% generation %}`, which marks the assistant's tokens for training, and render its body."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: jinja2.parser.Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _strftime_now(form: str) -> str:
    if len(form) > _MOST_FORM:
        raise limits.TooMuch("its form of a date is too long")
    return datetime.now().strftime(form)


def _reason(error: Exception) -> str:
    """Return an error's message in one line of bounded length."""
    return " ".join((str(error) or type(error).__name__).split())[:_SHOWN]


class ChatTemplate:
    """Hold a compiled chat template.

    takes_tools: whether it writes tools into the prompt.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._environment = environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = bounded_filter("tojson", _tojson)
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        if len(source) > limits.MOST_SOURCE:
            raise ModelError(f"the model's chat template has more than {limits.MOST_SOURCE:,} characters")
        try:
            self._template = environment.from_string(source)
            self.takes_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
        except Exception as error:  # SyntaxError, RecursionError, ... of a template nested too deeply
            raise ModelError(f"the model's chat template cannot be read: {_reason(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Return the prompt text. tools: as in OpenAI's API; None = none.

        Raises InvalidInput with the template's own message when it fails.
        """
        try:
            with self._environment.rendering():
                return self._template.render(
                    messages=list(messages), tools=list(tools) if tools else None,
                    documents=None, add_generation_prompt=add_generation_prompt, **variables,
                )  # fmt: skip
        except limits.TooMuch as error:
            raise InvalidInput(f"the model's chat template is stopped: {error}") from error
        except Exception as error:  # a template can raise anything; none of it is a bug of specport
            raise InvalidInput(
                f"the model's chat template refuses these messages: {_reason(error)}"
            ) from error
