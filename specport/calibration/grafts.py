"""Finds Graft's thresholds (`drafters.graft_thresholds`) by what its rounds bring on the calibration prompts.

Rounds are recorded, not timed: what they take is worked out from the step costs that were measured before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from specport.core.engine import Engine, Generation
from specport.core.planning.planner import Planner, Source
from specport.core.planning.policies import Fixed, Planned
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Drafter, Model
from specport.core.sampling.sampler import SamplingParams
from specport.drafters.spec import DraftModel, graft_drafter, reading_window
from specport.drafters.tree.graft import BUDGET, CHECKPOINTS, Checkpoint, DraftedRound, Variant, level_width
from specport.drafters.tree.graft_thresholds import ALWAYS, NEVER, Choice, RoundCosts, choose
from specport.progress import Progress, part
from specport.runtime.profiles import Profile
from specport.text import builtin_prompts
from specport.text.tokenizer import Tokenizer

TOKENS = 64  # written behind each prompt
Tell = Callable[[DraftedRound], None]
Make = Callable[[Variant, Tell], Drafter]


def calibrate(
    target: Model,
    tokenizer: Tokenizer,
    costs: StepCosts,
    draft: DraftModel,
    profile: Profile,
    progress: Progress,
) -> tuple[Choice, ...]:
    """What graft(MODEL) should do at its checkpoints, drafted as the profile's own policy drafts it.

    tokenizer, costs: the target's; both tables have to be in seconds.
    """
    planned = profile.policy == "planned"
    policy = Planned() if planned else Fixed(profile.num_draft_tokens or Fixed().num_draft_tokens)
    depth = policy.num_draft_tokens
    branching = planned and target.capabilities.tree
    window = reading_window(costs, draft.costs)
    width = level_width(min(BUDGET, depth), depth) if branching and draft.model.capabilities.tree else 1

    def make(variant: Variant, tell: Tell) -> Drafter:
        graft = graft_drafter(replace(draft, graft=variant), target.vocab_size, window, branching, tell)
        if not planned:
            return graft
        # A clock that stands still: the draft's costs stay as they were measured.
        source = Source(graft, draft.costs.fixed())
        return Planner([source], costs.fixed(), target.capabilities, clock=lambda: 0.0)

    return thresholds(
        target, make, CHECKPOINTS,
        [builtin_prompts.encode(tokenizer, p) for p in builtin_prompts.PROMPTS], tokenizer.eos_ids,
        policy, RoundCosts(costs, draft.costs, width, target.capabilities.forked_trees), progress,
    )  # fmt: skip


def thresholds(
    target: Model,
    make: Make,
    checkpoints: Sequence[Checkpoint],
    prompts: Sequence[Sequence[int]],
    eos_ids: frozenset[int],
    policy: Fixed | Planned,
    costs: RoundCosts,
    progress: Progress,
) -> tuple[Choice, ...]:
    """The thresholds for `checkpoints`; those that `policy` never goes on from stay as they are.

    make:    a new drafter that grafts as the variant says and tells a function of each round.
    prompts: [prompts][tokens]; those without room for an answer are left out.
    policy:  how trees are drafted, as when the thresholds are used.
    """
    depth = policy.num_draft_tokens
    fitting = [prompt for prompt in prompts if len(prompt) + TOKENS + depth <= target.max_context]
    reached = [c for c in checkpoints if c.level < depth]
    variants = [_stopping(checkpoints, level) for level in (0, *(c.level for c in reached))]
    recorded = []
    for number, variant in enumerate(variants):
        bar = part(progress, number / len(variants), (number + 1) / len(variants))
        recorded.append(record(target, make, variant, fitting, eos_ids, policy, bar))
    going_on, *stopping = recorded
    by_level = {c.level: rounds for c, rounds in zip(reached, stopping, strict=True)}
    return choose(checkpoints, going_on, by_level, costs)


def _stopping(checkpoints: Sequence[Checkpoint], level: int) -> Variant:
    """Always stops behind this level, and nowhere else."""
    return Variant(tuple(replace(c, threshold=ALWAYS if c.level == level else NEVER) for c in checkpoints))


def record(
    target: Model,
    make: Make,
    variant: Variant,
    prompts: Sequence[Sequence[int]],
    eos_ids: frozenset[int],
    policy: Fixed | Planned,
    progress: Progress,
) -> list[DraftedRound]:
    """The rounds in which this variant writes greedy answers.

    One at a time, so that what is retrieved comes from earlier answers as it does in use.
    """
    rounds: list[DraftedRound] = []
    engine = Engine(target, make(variant, rounds.append))
    for number, prompt in enumerate(prompts):
        # The last tokens of a text are drafted in smaller trees; so the text is longer than what is recorded.
        limit = TOKENS + policy.num_draft_tokens
        generation = Generation([*prompt], engine.open(), SamplingParams(), policy, limit, eos_ids)
        try:
            for _ in engine.run([generation]):
                done = number + min(generation.num_output_tokens / TOKENS, 1.0)
                progress("recording grafted trees", done / len(prompts))
                if generation.num_output_tokens >= TOKENS:
                    generation.cancel()
        finally:
            engine.close(generation.handle)
    return rounds
