"""A view of a model whose sequences are opened with what a function makes of their conditioning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from specport.core.ports.model import CacheHandle, Model


class _Conditioned:
    def __init__(self, model: Model, made: Callable[[Any], Any]) -> None:
        self._model, self._made = model, made

    def open(self, capacity: int = 0, conditioning: Any = None) -> CacheHandle:
        return self._model.open(capacity, self._made(conditioning))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def conditioned(model: Model, made: Callable[[Any], Any]) -> Model:
    """Return the model with another `open`: it passes on what `made` returns for the caller's conditioning.

    So a target and a draft with encoders of their own can be opened with the same input.
    """
    return cast(Model, _Conditioned(model, made))
