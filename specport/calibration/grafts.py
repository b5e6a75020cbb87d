"""Choose Graft's thresholds (`drafters.tree.graft_thresholds`) from recorded rounds.

Rounds are recorded, not timed: their time is computed from step costs that were measured before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    CAP,
    Fixed,
)
from specport.core.ports import Model, Policy
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.drafters.builtin import graft_drafter
from specport.drafters.context import DraftModel, reading_window
from specport.drafters.tree.graft import BUDGET, CHECKPOINTS, Checkpoint, DraftedRound, Variant, level_width
from specport.drafters.tree.graft_thresholds import ALWAYS, NEVER, Choice, RoundCosts, choose
from specport.progress import Progress, part
from specport.runtime.devices.profiles import Profile
from specport.text import builtin_prompts
from specport.text.tokenizer import Tokenizer

TOKENS = 64  # of each answer that are recorded
Record = Callable[[DraftedRound], None]
MakePolicy = Callable[[Variant, Record], Policy]


def calibrate(
    target: Model,
    tokenizer: Tokenizer,
    costs: StepCosts,
    draft: DraftModel,
    profile: Profile,
    progress: Progress,
) -> tuple[Choice, ...]:
    """Return thresholds for the checkpoints of graft(MODEL), drafted by the profile's default policy.

    tokenizer, costs: the target's. Its costs and the draft's must both be in seconds.
    """
    planned = profile.policy == "planned"
    depth = CAP if planned else profile.num_draft_tokens or Fixed().num_draft_tokens
    branching = planned and target.capabilities.tree
    window = reading_window(costs, draft.costs)
    width = level_width(min(BUDGET, depth), depth) if branching and draft.model.capabilities.tree else 1

    def make(variant: Variant, record: Record) -> Policy:
        graft = graft_drafter(replace(draft, graft=variant), target.vocab_size, window, branching, record)
        if not planned:
            return FirstProposal([graft], lambda: Fixed(depth), tree=target.capabilities.tree)
        # The clock stands still, so that the planner keeps the draft's measured costs.
        source = Source(graft, draft.costs.fixed())
        return Planner([source], costs.fixed(), target.capabilities, clock=lambda: 0.0)

    return thresholds(
        target, make, CHECKPOINTS,
        [builtin_prompts.encode(tokenizer, p) for p in builtin_prompts.PROMPTS], tokenizer.eos_ids,
        depth, RoundCosts(costs, draft.costs, width, target.capabilities.forked_trees), progress,
    )  # fmt: skip


def thresholds(
    target: Model,
    make: MakePolicy,
    checkpoints: Sequence[Checkpoint],
    prompts: Sequence[Sequence[int]],
    eos_ids: frozenset[int],
    depth: int,
    costs: RoundCosts,
    progress: Progress,
) -> tuple[Choice, ...]:
    """Return thresholds for `checkpoints`; checkpoints at `depth` or deeper keep theirs.

    make:    returns a new policy that drafts by the given variant and reports each round to the given
             function.
    prompts: [prompts][tokens]; prompts without room for an answer are left out.
    depth:   longest path that is drafted; the same as where the thresholds are used.
    """
    fitting = [prompt for prompt in prompts if len(prompt) + TOKENS + depth <= target.max_context]
    reached = [c for c in checkpoints if c.level < depth]
    variants = [_stopping(checkpoints, level) for level in (0, *(c.level for c in reached))]
    recorded = []
    for number, variant in enumerate(variants):
        bar = part(progress, number / len(variants), (number + 1) / len(variants))
        recorded.append(record(target, make, variant, fitting, eos_ids, depth, bar))
    going_on, *stopping = recorded
    by_level = {c.level: rounds for c, rounds in zip(reached, stopping, strict=True)}
    return choose(checkpoints, going_on, by_level, costs)


def _stopping(checkpoints: Sequence[Checkpoint], level: int) -> Variant:
    """Return a variant that always stops after this level, and nowhere else."""
    return Variant(tuple(replace(c, threshold=ALWAYS if c.level == level else NEVER) for c in checkpoints))


def record(
    target: Model,
    make: MakePolicy,
    variant: Variant,
    prompts: Sequence[Sequence[int]],
    eos_ids: frozenset[int],
    depth: int,
    progress: Progress,
) -> list[DraftedRound]:
    """Return the rounds in which the target writes greedy answers with this variant.

    Answers are written one at a time, so that retrieval sees the earlier answers, as it does in use.
    """
    rounds: list[DraftedRound] = []
    engine = Engine(target, make(variant, rounds.append))
    for number, prompt in enumerate(prompts):
        # Trees get smaller near the end of a text, so the text is longer than what is recorded.
        generation = Generation([*prompt], SamplingParams(), TOKENS + depth, eos_ids)
        for _ in engine.run([generation]):
            done = number + min(generation.num_output_tokens / TOKENS, 1.0)
            progress("recording grafted trees", done / len(prompts))
            if generation.num_output_tokens >= TOKENS:
                generation.cancel()
    return rounds
