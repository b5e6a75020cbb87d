"""The user's choice of a drafting policy and an acceptance rule, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from specport.core.policies.length_rules import (
    CAP,
    PLANNED,
    LengthRule,
    check_branches,
    make_length_rule,
    require_at_least,
)
from specport.core.ports import StopRule
from specport.core.sampling.params import SamplingParams
from specport.core.verify.rules import AcceptanceRule, rule_for


@dataclass(frozen=True)
class Drafting:
    """Hold a policy's name with its parameters, and an acceptance rule's name.

    policy:     "planned", or the name of a length rule (`policies.make_length_rule`).
    num_draft_tokens, branches, classifier: parameters of the length rule; for "planned" num_draft_tokens is
                the maximum depth.
    acceptance: see `rules.rule_for`.

    Raises InvalidInput for unknown names and invalid numbers.
    """

    policy: str = PLANNED
    num_draft_tokens: int | None = None
    branches: tuple[int, ...] = ()
    acceptance: str = "rejection"
    classifier: StopRule | None = None

    def __post_init__(self) -> None:
        if self.planned:
            check_branches(self.policy, self.branches)
            require_at_least(1, self.max_depth)
        else:
            self.make_length_rule()
        self.make_rule(SamplingParams(temperature=1.0))

    @property
    def planned(self) -> bool:
        """Return whether the planner decides."""
        return self.policy == PLANNED

    @property
    def max_depth(self) -> int:
        """Return the maximum path length that the planner may draft."""
        return CAP if self.num_draft_tokens is None else self.num_draft_tokens

    def make_length_rule(self) -> LengthRule:
        """Make the length rule of one sequence, for policies other than "planned"."""
        return make_length_rule(self.policy, self.num_draft_tokens, self.branches, self.classifier)

    def make_rule(self, params: SamplingParams) -> AcceptanceRule:
        """Make the acceptance rule for these sampling parameters."""
        return rule_for(params, self.acceptance)
