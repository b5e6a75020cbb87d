"""`specport quantize compare`: size, fidelity and speed of a model at several weight formats on a device.

The source is the model in fp16, computed in f32. It writes answers; the model in each format then reads the
same tokens on the device. Prompts are bound by computation, single tokens by memory, and verify steps lie
between, so all three are timed (`step_times.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from specport.quantize.evaluate import ranking
from specport.quantize.evaluate.fidelity import Fidelity, measure_fidelity, perplexity
from specport.quantize.evaluate.formats import (
    Format,
    converted,
    distinct,
    fit_together,
    formats,
    loader_on,
    share,
)
from specport.quantize.evaluate.step_times import (
    CONTEXT,
    DECODE_TOKENS,
    ROUNDS,
    WIDTHS,
    Plan,
    Times,
    Timing,
    measure,
)
from specport.quantize.text.prompts import HELD_OUT

from specport.calibration.target_text import write
from specport.core.ports import Model
from specport.errors import InvalidInput
from specport.models.precision import parse
from specport.progress import Progress, part, silent
from specport.runtime.devices.profiles import Profile, cpu_name
from specport.runtime.versions import installed
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import Tokenizer, load_tokenizer

SOURCE = "fp16"
F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
PACKAGES = ("openvino", "nncf", "optimum-intel", "transformers", "torch")
ANSWER_TOKENS = 96
PROMPT_TOKENS = 140  # HumanEval's mean


@dataclass(frozen=True)
class Row:
    """One weight format.

    dynamic_group: activations that share a scale; None = the runtime's own choice.
    size_mb: of the weights' files, in 10^6 bytes.
    tpot, ttft: of plain decoding. steps: new tokens -> a step of that many.
    prompt_rate: tokens of a prompt per second.
    place, keeps_quality, cost: as in `ranking.Rank`.
    notes: of the backend.
    """

    precision: str
    dynamic_group: int | None
    size_mb: float
    fidelity: Fidelity
    tpot: Times
    ttft: Times
    steps: dict[int, Times]
    prompt_rate: float
    place: int
    keeps_quality: bool
    cost: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All formats of one model on one device.

    answers, tokens: number of answers that were compared, and of their tokens.
    source_perplexity: of the source on its own answers.
    context: tokens in the cache before the steps that were timed.
    interleaved: whether all formats were timed in turns in each round; else one after another.
    baseline: the format whose quality the ranking keeps.
    """

    model: str
    device: str
    processor: str
    answers: int
    tokens: int
    source_perplexity: float
    prompt_tokens: int
    context: int
    rounds: int
    exact: bool
    interleaved: bool
    baseline: str
    rows: tuple[Row, ...]
    versions: dict[str, str]


def compare(
    model: str | None = None,
    *,
    precisions: Sequence[str] = (),
    baseline: str | None = None,
    dynamic_groups: Sequence[str] = (),
    prompts: Sequence[str] = (),
    context: int = CONTEXT,
    rounds: int = ROUNDS,
    exact: bool = True,
    device: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Convert a model to each of `precisions`, measure its fidelity, time it, and rank them.

    precisions: none = fp16, int8, int4 and the device's defaults.
    baseline:   the format whose quality is to be kept; it is measured too. None = the device's default for
                targets where it is compared, else the first.
    dynamic_groups: groups of activations to try with each; none = what fits (`formats.FIT`).
    prompts:    for the source to answer; none = `prompts.HELD_OUT`.
    context, rounds: of the timing.
    Other arguments as for `specport.load`. At most two models are loaded at a time until the timing. Raises
    SpecportError.
    """
    check_plan(context, rounds)
    loader = replace(loader_on(device, threads, dynamic_groups), trust_remote_code=trust_remote_code)
    names = distinct(loader, [*(precisions or defaults(loader.profile)), *filter(None, [baseline])])
    source, *files = converted(loader, model, [SOURCE, *names], part(progress, 0.0, 0.4))
    tokenizer = load_tokenizer(source.folder)
    reader = replace(loader, profile=replace(loader.profile, device="CPU", fast=F32, fit_dynamic_group=False))
    reference = reader.target_with(source, exact=False).model
    written = write(reference, tokenizer, prompts or HELD_OUT, ANSWER_TOKENS, part(progress, 0.4, 0.5))
    texts = [text for text in written if text.answer]
    if not texts:
        raise InvalidInput("no prompt fits the model's context", "give shorter ones with --prompts")
    source_perplexity = perplexity(reference, texts)
    compared = formats(loader, files, dynamic_groups)
    measured: list[tuple[Fidelity, tuple[str, ...]]] = []
    for number, each in enumerate(compared):
        bar = share(part(progress, 0.5, 0.75), each.name, number, len(compared))
        loaded = each.loader.target_with(each.files, exact)
        measured.append((measure_fidelity(reference, loaded.model, texts, bar), loaded.notes))
        del loaded  # before the next one is loaded
    plan = timing_plan(tokenizer, reference.max_context, context, rounds)
    del reference
    interleaved = fit_together(compared)
    loads = [partial(_load, each, exact) for each in compared]
    timed = measure(loads, plan, interleaved, part(progress, 0.75, 1.0))
    kept = str(parse(baseline)) if baseline else _baseline(names, loader.profile)
    return Comparison(
        model=source.name,
        device=loader.profile.name,
        processor=cpu_name(),
        answers=len(texts),
        tokens=sum(len(text.answer) for text in texts),
        source_perplexity=source_perplexity,
        prompt_tokens=len(plan.prompt),
        context=plan.context,
        rounds=rounds,
        exact=exact,
        interleaved=interleaved,
        baseline=kept,
        rows=_rows(compared, measured, timed, len(plan.prompt), kept),
        versions=installed(PACKAGES),
    )


def defaults(profile: Profile) -> list[str]:
    """Return the precisions to compare by default: the three kinds, and the device's own defaults."""
    kinds = ("fp16", "int8:sym", "int4:sym") if profile.symmetric else ("fp16", "int8", "int4")
    return [*kinds, profile.precision, profile.draft_precision]


def check_plan(context: int, rounds: int) -> None:
    """Raise InvalidInput for numbers that cannot be timed."""
    for name, value, least in (("context", context, 1), ("rounds", rounds, 2)):
        if value < least:
            raise InvalidInput(f"{name} is {value}; it must be {least} or more")


def timing_plan(tokenizer: Tokenizer, max_context: int, context: int, rounds: int) -> Plan:
    """Return what to time: a prompt, and steps behind `context` tokens, or as many as the model holds."""
    room = min(PROMPT_TOKENS, max_context - DECODE_TOKENS - 1)
    prompt = encode(tokenizer, " ".join(HELD_OUT))[:room]
    return Plan(prompt, max(1, min(context, max_context - max(WIDTHS))), WIDTHS, rounds)


def _baseline(names: Sequence[str], profile: Profile) -> str:
    own = str(parse(profile.precision))
    return own if own in names else names[0]


def _rows(
    compared: Sequence[Format],
    measured: Sequence[tuple[Fidelity, tuple[str, ...]]],
    timed: Sequence[Timing],
    prompt_tokens: int,
    baseline: str,
) -> tuple[Row, ...]:
    """Return the rows in the order of `compared`, ranked against the first of the format `baseline`."""
    candidates = [
        ranking.Candidate(near.kl, timing.medians) for (near, _), timing in zip(measured, timed, strict=True)
    ]
    ranks = ranking.rank(candidates, [each.name for each in compared].index(baseline))
    return tuple(
        Row(
            precision=each.name,
            dynamic_group=each.dynamic_group,
            size_mb=each.size / 1e6,
            fidelity=near,
            tpot=timing.tpot,
            ttft=timing.ttft,
            steps=timing.steps,
            prompt_rate=1e3 * prompt_tokens / timing.ttft.median,
            place=rank.place,
            keeps_quality=rank.keeps_quality,
            cost=rank.cost,
            notes=notes,
        )
        for each, (near, notes), timing, rank in zip(compared, measured, timed, ranks, strict=True)
    )


def _load(each: Format, exact: bool) -> Model:
    return each.loader.target_with(each.files, exact).model
