"""What the API has and this server does not: the one table of such fields.

To support a field, delete its row here and add the field to `schema.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specport.serve.openai.errors import not_supported

# field -> values that ask for nothing, which pass. null always passes.
NOT_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "moderation": (),
    "store": (False,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
# The same for the fields of a message.
NOT_SUPPORTED_IN_MESSAGES: Mapping[str, tuple[Any, ...]] = {
    "function_call": (),
    "audio": (),
}
# Fields that change nothing about the answer, and are ignored.
IGNORED = frozenset(
    {
        "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options",
    }
)  # fmt: skip


def without_unsupported(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that matter. Raises ApiError where one of them is not supported."""
    left = _checked(body, NOT_SUPPORTED, "")
    messages = left.get("messages")
    if isinstance(messages, list):
        left["messages"] = [
            _checked(message, NOT_SUPPORTED_IN_MESSAGES, f"messages[{i}].")
            if isinstance(message, dict)
            else message
            for i, message in enumerate(messages)
        ]
    return {name: value for name, value in left.items() if name not in IGNORED}


def _checked(given: Mapping[str, Any], table: Mapping[str, tuple[Any, ...]], where: str) -> dict[str, Any]:
    for name, passing in table.items():
        value = given.get(name)
        if value is not None and not any(type(value) is type(each) and value == each for each in passing):
            raise not_supported(where + name, "is not supported yet")
    return {name: value for name, value in given.items() if name not in table}
