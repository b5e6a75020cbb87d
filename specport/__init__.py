"""specport: speculative decoding that runs, and pays, on any hardware.

import specport
pipeline = specport.load()
print(pipeline.generate("Explain speculative decoding to a child.").text)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specport.api import Chat, GenerationOptions, Pipeline
    from specport.errors import SpecportError
    from specport.runtime.loading import load
    from specport.stream import Chunk, Result, Stream

# Run from a checkout (`python -m specport` there finds this folder, not the installed copy): what
# pyproject.toml maps to specport.backends, .quantize and .hw_profiles stands beside this folder.
_beside = Path(__file__).parent.parent
if not Path(__file__).with_name("backends").exists() and (_beside / "hw_profiles").is_dir():
    __path__.append(str(_beside))

__version__ = "0.1.0"
__all__ = ["Chat", "Chunk", "GenerationOptions", "Pipeline", "Result", "SpecportError", "Stream", "load"]


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `specport --help` must not load a runtime."""
    if name not in __all__:
        raise AttributeError(f"module 'specport' has no attribute {name!r}")
    from importlib import import_module

    streaming = dict.fromkeys(("Chunk", "Result", "Stream"), "stream")
    homes = {"load": "runtime.loading", "SpecportError": "errors", **streaming}
    return getattr(import_module(f"specport.{homes.get(name, 'api')}"), name)
