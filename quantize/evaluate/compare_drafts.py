"""`specport quantize compare --target`: a draft's weight formats, ranked by acceptance over cost.

A draft has no quality to keep but its acceptance. Each format drafts chains of DEPTH tokens for the target's
greedy answers; steps of drafts and target are timed in turns. Both together give the speed-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from specport.quantize.evaluate import ranking
from specport.quantize.evaluate.compare import PACKAGES, check_plan, timing_plan
from specport.quantize.evaluate.formats import (
    Format,
    converted,
    distinct,
    fit_together,
    formats,
    loader_on,
    share,
)
from specport.quantize.evaluate.pair import Acceptance, DraftPair, acceptance
from specport.quantize.evaluate.step_times import CONTEXT, ROUNDS, Times, Timing, measure
from specport.quantize.text.prompts import HELD_OUT

from specport.core.ports import Model
from specport.errors import ModelError
from specport.progress import Progress, part, silent
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.versions import installed
from specport.text.tokenizer import load_tokenizer

DEPTH = 8


@dataclass(frozen=True)
class DraftRow:
    """One weight format of the draft.

    dynamic_group: activations that share a scale; None = the runtime's own choice.
    survival: share of the rounds in which the draft tokens of depth 1, 2, ... were all accepted.
    steps: new tokens -> a step of that many. prompt_rate: tokens of a prompt per second.
    speed_up, length: over plain decoding at the best fixed number of draft tokens, by these figures.
    place: 1 = best.
    """

    precision: str
    dynamic_group: int | None
    size_mb: float
    survival: tuple[float, ...]
    rounds: int
    steps: dict[int, Times]
    prompt_rate: float
    speed_up: float
    length: int
    place: int


@dataclass(frozen=True)
class DraftComparison:
    """All formats of one draft for one target on one device.

    target_steps: new tokens -> a step of the target, timed in turns with the drafts where `interleaved`.
    """

    model: str
    target: str
    target_precision: str
    target_steps: dict[int, Times]
    device: str
    processor: str
    prompts: int
    prompt_tokens: int
    context: int
    rounds: int
    exact: bool
    interleaved: bool
    rows: tuple[DraftRow, ...]
    versions: dict[str, str]


def compare_drafts(
    model: str | None,
    target: str,
    *,
    precisions: Sequence[str] = (),
    target_precision: str | None = None,
    dynamic_groups: Sequence[str] = (),
    prompts: Sequence[str] = (),
    context: int = CONTEXT,
    rounds: int = ROUNDS,
    exact: bool = True,
    device: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> DraftComparison:
    """Convert a draft to each of `precisions`, measure its acceptance and its steps, and rank them.

    precisions: none = int8, int4 and the device's default for drafts.
    target_precision: None = the device's default for targets.
    Other arguments as for `compare`. Raises SpecportError.
    """
    check_plan(context, rounds)
    loader = replace(
        loader_on(device, threads, dynamic_groups),
        trust_remote_code=trust_remote_code,
        progress=part(progress, 0.3, 0.4),
    )
    kinds = ("int8:sym", "int4:sym") if loader.profile.symmetric else ("int8", "int4")
    names = distinct(loader, precisions or [*kinds, loader.profile.draft_precision])
    compared = formats(loader, converted(loader, model, names, part(progress, 0.0, 0.3)), dynamic_groups)
    target_files, loaded = loader.target(target, target_precision, exact)
    tokenizer = load_tokenizer(target_files.folder)
    if wrong := loader.draft_files(model or "default", names[0], target_files, tokenizer).mismatch:
        raise ModelError(f"{compared[0].files.name} has another tokenizer than the target: {wrong}")
    accepted: list[Acceptance] = []
    limit = loaded.model.max_context
    for number, each in enumerate(compared):
        bar = share(part(progress, 0.4, 0.8), each.name, number, len(compared))
        draft = each.loader.draft_with(each.files, None)
        costs, draft_costs = loader.costs(loaded), loader.costs(draft)
        pair = DraftPair(loaded, draft, tokenizer, each.files.name, costs, draft_costs)
        accepted.append(acceptance(pair, prompts or HELD_OUT, DEPTH, bar))
        limit = min(limit, draft.model.max_context)
        del draft, pair  # before the next one is loaded
    plan = timing_plan(tokenizer, limit, context, rounds)
    interleaved = fit_together([*compared, Format(target_files, loader, None)])
    loads: list[Callable[[], Model]] = [lambda: loaded.model, *(partial(_load, each) for each in compared)]
    own, *timed = measure(loads, plan, interleaved, part(progress, 0.8, 1.0))
    return DraftComparison(
        model=compared[0].files.name,
        target=target_files.name,
        target_precision=target_files.precision,
        target_steps=own.steps,
        device=loader.profile.name,
        processor=cpu_name(),
        prompts=accepted[0].prompts,
        prompt_tokens=len(plan.prompt),
        context=plan.context,
        rounds=rounds,
        exact=exact,
        interleaved=interleaved,
        rows=_rows(compared, accepted, timed, own, len(plan.prompt)),
        versions=installed(PACKAGES),
    )


def _rows(
    compared: Sequence[Format],
    accepted: Sequence[Acceptance],
    timed: Sequence[Timing],
    target: Timing,
    prompt_tokens: int,
) -> tuple[DraftRow, ...]:
    worth = []
    for each, found, timing in zip(compared, accepted, timed, strict=True):
        bundle = each.files.bundle
        parallel = bundle is not None and bundle.parallel is not None
        worth.append(ranking.speed_up(found.survival, timing.medians, target.medians, parallel=parallel))
    order = sorted(range(len(worth)), key=lambda i: -worth[i].factor)
    return tuple(
        DraftRow(
            precision=each.name,
            dynamic_group=each.dynamic_group,
            size_mb=each.size / 1e6,
            survival=accepted[i].survival,
            rounds=accepted[i].rounds,
            steps=timed[i].steps,
            prompt_rate=1e3 * prompt_tokens / timed[i].ttft.median,
            speed_up=worth[i].factor,
            length=worth[i].length,
            place=order.index(i) + 1,
        )
        for i, each in enumerate(compared)
    )


def _load(each: Format) -> Model:
    return each.loader.draft_with(each.files, None).model
