"""specport for agents: a model for smolagents, and the plugin for `llm`. Both run in the agent's own process.

from specport.agents import SpecportModel
from smolagents import CodeAgent
print(CodeAgent(tools=[], model=SpecportModel()).run("What is 37 * 41?"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specport.agents.smolagents_model import SpecportModel
    from specport.agents.totals import Totals

__all__ = ["SpecportModel", "Totals"]
_HOMES = {"SpecportModel": "specport.agents.smolagents_model", "Totals": "specport.agents.totals"}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `llm` loads its plugin from this package at every start."""
    if name not in _HOMES:
        raise AttributeError(f"module 'specport.agents' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
