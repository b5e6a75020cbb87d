"""A request for one text: what `Pipeline.request` makes of a prompt and its options."""

from __future__ import annotations

from dataclasses import dataclass

from specport.options import GenerationOptions
from specport.text.tools.session import ToolSession


@dataclass(frozen=True)
class TextRequest:
    """Hold a prompt's token ids, and how to answer it.

    options: as given, but with the grammar that the tools ask for.
    tools:   None where the prompt has nothing to do with tools.
    """

    ids: list[int]
    options: GenerationOptions
    tools: ToolSession | None = None
