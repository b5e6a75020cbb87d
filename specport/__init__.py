"""specport: speculative decoding that runs, and pays, on any hardware.

import specport
pipeline = specport.load()
print(pipeline.generate("Explain speculative decoding to a child").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specport.api import Chat, Chunk, GenerationOptions, Pipeline, Result, Stream
    from specport.errors import SpecportError
    from specport.loading import load

__version__ = "0.1.0"
__all__ = ["Chat", "Chunk", "GenerationOptions", "Pipeline", "Result", "SpecportError", "Stream", "load"]


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `specport --help` must not load a runtime."""
    if name not in __all__:
        raise AttributeError(f"module 'specport' has no attribute {name!r}")
    from importlib import import_module

    homes = {"load": "specport.loading", "SpecportError": "specport.errors"}
    return getattr(import_module(homes.get(name, "specport.api")), name)
