"""How wide the passes are of a drafter that drafts several tokens at once. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass, field

from specport.core.planning.step_costs import StepCosts
from specport.core.planning.width_changes import CHANGING

_SPAN = 64  # tokens of context over which a choice holds


@dataclass
class ParallelPasses:
    """Choose the widths of passes.

    depth: most tokens that a pass drafts.
    costs: of its model's steps, which must not learn: a seeded text is repeatable. None = a pass is as narrow
           as can be.

    A pass reads as many tokens as the last round committed, so that its width changes. A runtime that
    prepares its kernels again for each width takes longer for that than for a few more tokens.
    """

    depth: int
    costs: StepCosts | None = None
    _chosen: dict[tuple[int, int], int] = field(init=False, default_factory=dict, repr=False, compare=False)

    def width(self, behind: int, depth: int, context: int) -> int:
        """Return the new tokens of a pass that reads `behind` tokens of the text and drafts `depth`.

        The first draft comes with the last token of the text, and each other one from a MASK.
        """
        narrow, widest = behind + depth - 1, 2 * self.depth
        if self.costs is None or narrow >= widest:
            return narrow
        key = narrow, context // _SPAN
        if key not in self._chosen:
            at = key[1] * _SPAN  # not `context`: which came first must not matter
            more = self.costs.step(widest, at) - self.costs.step(narrow, at)
            pays = CHANGING * self.costs.change_seconds(at) > more
            self._chosen[key] = widest if pays else narrow
        return self._chosen[key]
