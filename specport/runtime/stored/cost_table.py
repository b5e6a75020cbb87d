"""Step costs as they are stored in files."""

from __future__ import annotations

from msgspec import Struct

from specport.core.planning.step_costs import StepCosts
from specport.outside.numbers import Amount, Count, Positive


class CostTable(Struct):
    """Hold a measured table; entries as in `StepCosts`. Raises ValueError for an invalid one."""

    widths: tuple[Count, ...]
    contexts: tuple[Count, ...]
    seconds: tuple[tuple[Positive, ...], ...]
    change: Amount

    def __post_init__(self) -> None:
        self.costs()

    def costs(self) -> StepCosts:
        """Return them as the planner takes them."""
        return StepCosts(self.widths, self.contexts, self.seconds, self.change, measured=True)
