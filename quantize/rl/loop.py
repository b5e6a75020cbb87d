"""The loop: write rollouts with drafts, rate them, update the learner, give its weights to the engine.

The drafter stays as it is, as Bebop does with its head ("Breaking Entropy Bounds", arXiv 2606.12370).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from specport.quantize.rl import record
from specport.quantize.rl.learner import Learner
from specport.quantize.rl.record import Step
from specport.quantize.rl.rollouts import Writer
from specport.quantize.rl.tasks import Task
from specport.quantize.train.trainer import CHECKPOINT, SAVE_EVERY_S, Run

from specport.errors import InvalidInput
from specport.pipeline import Pipeline
from specport.progress import Progress, silent


@dataclass(frozen=True)
class Recipe:
    """Hold the sizes of a run.

    steps:     updates. samples: of each prompt, at least 2.
    compare:   after so many steps the rollouts are also written without drafts, to compare times; 0 = never.
    """

    steps: int = 60
    samples: int = 4
    max_new_tokens: int = 48
    compare: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("samples", 2), ("max_new_tokens", 1), ("compare", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be {least} or more")


def train(
    pipeline: Pipeline,
    learner: Learner,
    tasks: Callable[[int], Sequence[Task]],
    recipe: Recipe,
    out: Path,
    *facts: str,
    progress: Progress = silent,
    save_every_s: float = SAVE_EVERY_S,
) -> list[Step]:
    """Train for `recipe.steps` steps; return a record of all of them, which `out` holds too.

    A checkpoint in `out` is gone on with where it is of the same run. Ctrl-C writes one, except between an
    update of the weights and its record: there the last one stays.

    pipeline: the target, with the same weights as the learner, and its drafter.
    tasks:    returns the tasks of a step, as many in each step.
    facts:    what else decides the run, such as the names of model and tasks.
    Raises ModelError where a checkpoint cannot be read or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    writer = Writer(pipeline, recipe.max_new_tokens)
    sizes = (recipe.samples, recipe.max_new_tokens, recipe.seed)
    run = learner.run(out / CHECKPOINT, repr(sizes), pipeline.model_name, pipeline.draft_name, *facts)
    steps = _resumed(run, out)
    if run.step:
        pipeline.update_weights(learner.weights)
    saved, whole = time.monotonic(), learner.num_updates
    try:
        for number in range(run.step, recipe.steps):
            compare = bool(recipe.compare) and number % recipe.compare == 0
            steps.append(_step(writer, learner, tasks(number), recipe, number, compare))
            run.step, whole = number + 1, learner.num_updates
            record.write(out, steps)
            progress(_told(steps[-1]), run.step / recipe.steps)
            if time.monotonic() - saved > save_every_s:
                run.save()
                saved = time.monotonic()
    except KeyboardInterrupt:
        if run.step and learner.num_updates == whole:
            record.write(out, steps)  # may have been interrupted itself
            run.save()
        raise
    run.save()
    return steps


def _resumed(run: Run, out: Path) -> list[Step]:
    """Return the steps before the checkpoint; none where there is no checkpoint of this run."""
    if not run.load():
        return []
    steps = record.read(out)[: run.step]
    if len(steps) < run.step:
        raise InvalidInput(
            f"{out / record.NAME} has fewer steps than the checkpoint beside it",
            "start anew with another --out",
        )
    return steps


def _step(
    writer: Writer, learner: Learner, tasks: Sequence[Task], recipe: Recipe, number: int, compare: bool
) -> Step:
    prompts = [task.prompt for task in tasks]
    seed = recipe.seed * 1_000_003 + number
    rollouts = writer.write(prompts, recipe.samples, seed)
    plain_s = None
    if compare:
        lengths = [len(rollout.tokens) for rollout in rollouts.texts]
        plain_s = writer.write_plain(prompts, lengths, seed).seconds
    rewards = [
        [task.reward(r.text) for r in rollouts.texts[i * recipe.samples : (i + 1) * recipe.samples]]
        for i, task in enumerate(tasks)
    ]
    began = time.perf_counter()
    update = learner.update(rollouts.texts, rewards)
    learnt = time.perf_counter()
    writer.pipeline.update_weights(learner.weights)
    logprobs = [value for rollout in rollouts.texts for value in rollout.logprobs]
    flat = [reward for group in rewards for reward in group]
    return Step(
        step=number,
        reward=sum(flat) / len(flat),
        entropy=max(0.0, -sum(logprobs) / len(logprobs)),
        tokens=rollouts.num_tokens,
        drafts=rollouts.drafts,
        drafted=rollouts.drafted,
        accepted=rollouts.accepted,
        rollout_s=rollouts.seconds,
        plain_s=plain_s,
        learn_s=learnt - began,
        update_s=time.perf_counter() - learnt,
        gap=update.gap,
        most_gap=update.most_gap,
    )


def _told(step: Step) -> str:
    speed = f", {step.speed_up:.2f}x plain" if step.speed_up is not None else ""
    return (
        f"step {step.step + 1} (reward {step.reward:.2f}, acceptance {step.acceptance_rate:.0%}, "
        f"{step.tokens_per_second:.0f} tokens/s{speed})"
    )
