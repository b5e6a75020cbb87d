"""Step costs of a model that a build reckons with."""

from __future__ import annotations

from specport.calibration.measure import measure
from specport.core.planning.step_costs import StepCosts
from specport.progress import Progress, silent
from specport.runtime.devices.registry import Loaded
from specport.runtime.stored import measurements

BUDGET_S, CONTEXTS = 8.0, (64,)  # of a quick measurement, where calibration has measured no costs


def step_costs(loaded: Loaded, progress: Progress = silent) -> StepCosts:
    """Return the step costs that calibration has stored, else measure them briefly."""
    if stored := measurements.find(loaded.key):
        return stored.costs
    return measure(loaded.model, contexts=CONTEXTS, budget_s=BUDGET_S, progress=progress).costs
