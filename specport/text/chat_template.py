"""Render chat templates. A template comes with the model and is untrusted: it runs in jinja's sandbox.

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
from jinja2.sandbox import ImmutableSandboxedEnvironment

from specport.errors import InvalidInput, ModelError


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


class ChatTemplate:
    """Hold a compiled chat template.

    takes_tools: whether it writes tools into the prompt.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
            self.takes_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template cannot be read: {error}") from error

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
            return self._template.render(
                messages=list(messages), tools=list(tools) if tools else None,
                documents=None, add_generation_prompt=add_generation_prompt, **variables,
            )  # fmt: skip
        except Exception as error:  # a template can raise anything; none of it is a bug of specport
            reason = str(error) or type(error).__name__
            raise InvalidInput(f"the model's chat template refuses these messages: {reason}") from error
