"""The port for weights that change while a model is loaded, as they do in reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class WeightUpdates(Protocol):
    """Replace weights of a loaded model in place (`Model.weight_updates`).

    What the model derived from the old weights (packed layers, the rows that a draft head shares) follows.
    What sequences have in their caches does not: call it through `Engine.update_weights`, which discards it.
    In exact mode the model then computes, to the bit, what one would that was loaded with the new weights.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each weight, by the names of the model's own format."""
        ...

    def check(self, weights: Mapping[str, Any]) -> None:
        """Raise InvalidInput for names or shapes that the model does not have. Nothing changes."""
        ...

    def replace(self, weights: Mapping[str, Any]) -> None:
        """Take these arrays as weights, converted to the model's precision; the others stay.

        Copies them: the caller may change them afterwards. Raises InvalidInput as `check` does.
        """
        ...
