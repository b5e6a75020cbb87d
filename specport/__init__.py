"""specport: speculative decoding that runs, and pays, on any hardware.

import specport
pipeline = specport.load()
print(pipeline.generate("Explain speculative decoding to a child.").text)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from specport.runtime.versions import VERSION

if TYPE_CHECKING:
    from specport.api import load
    from specport.chat import Chat
    from specport.errors import SpecportError
    from specport.options import GenerationOptions
    from specport.pipeline import Pipeline
    from specport.stream import Chunk, Result, Stream
    from specport.text.grammar.grammar import Grammar

# Run from a checkout (`python -m specport` there finds this folder, not the installed copy): what
# pyproject.toml maps to specport.backends, .quantize and .hw_profiles stands beside this folder.
_beside = Path(__file__).parent.parent
if not Path(__file__).with_name("backends").exists() and (_beside / "hw_profiles").is_dir():
    __path__.append(str(_beside))

__version__ = VERSION
__all__ = [
    "Chat", "Chunk", "GenerationOptions", "Grammar", "Pipeline", "Result", "SpecportError", "Stream", "load",
]  # fmt: skip
_HOMES = {
    "load": "specport.api",
    "Chat": "specport.chat",
    "Chunk": "specport.stream",
    "GenerationOptions": "specport.options",
    "Grammar": "specport.text.grammar.grammar",
    "Pipeline": "specport.pipeline",
    "Result": "specport.stream",
    "SpecportError": "specport.errors",
    "Stream": "specport.stream",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `specport --help` must not load a runtime."""
    if name not in _HOMES:
        raise AttributeError(f"module 'specport' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
