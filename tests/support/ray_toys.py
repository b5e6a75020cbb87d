"""What processes of a Ray cluster load in place of models."""

from __future__ import annotations

from support.toy_model import ToyModel
from support.toy_pipeline import ToyTokenizer


def target(threads: int) -> tuple[ToyModel, ToyTokenizer]:
    """The target that writes text."""
    return ToyModel(max_context=4096), ToyTokenizer()
