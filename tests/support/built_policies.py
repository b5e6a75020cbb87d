"""What policies are built from: drafters and costs, as `build_policy` hands them over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    LengthRule,
)
from specport.core.ports import Drafter
from specport.drafters.forced import ForcedDrafter


@dataclass(frozen=True)
class Built:
    """The parts of one policy, without the drafter of forced tokens, which each has.

    costs, draft_costs: of the target's steps and of each drafter's; None where a length rule drafts.
    make_rule:          the length rule's maker; None for a planner.
    """

    drafters: list[Drafter]
    costs: StepCosts | None = None
    draft_costs: Sequence[StepCosts | None] = ()
    make_rule: Callable[[], LengthRule] | None = None


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Built]:
    """The policies that are built in this test, oldest first."""
    found: list[Built] = []

    def planner(sources: Sequence[Source], costs: StepCosts, *rest: Any, **options: Any) -> Planner:
        told = [source for source in sources if not isinstance(source.drafter, ForcedDrafter)]
        found.append(Built([s.drafter for s in told], costs, [s.costs for s in told]))
        return Planner(sources, costs, *rest, **options)

    def first_proposal(
        drafters: Sequence[Drafter], make_rule: Callable[[], LengthRule], **options: Any
    ) -> FirstProposal:
        told = [drafter for drafter in drafters if not isinstance(drafter, ForcedDrafter)]
        found.append(Built(told, make_rule=make_rule))
        return FirstProposal(drafters, make_rule, **options)

    monkeypatch.setattr("specport.drafters.build.Planner", planner)
    monkeypatch.setattr("specport.drafters.build.FirstProposal", first_proposal)
    return found
