"""Plan the steps of a tuning within its budget, and estimate what each takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from specport.calibration.calibrate import DRAFT_S, SAMPLE_TOKENS, TARGET_S
from specport.calibration.measure import CONTEXTS
from specport.core.planning.step_costs import StepCosts
from specport.drafters.registry import MTP
from specport.text.builtin_prompts import PROMPTS
from specport.tune.budget import written
from specport.tune.hand import Sibling
from specport.tune.trainings import HEAD, PARALLEL, Training

CALIBRATE, FORMATS, RANK, HEAT = "calibrate", "weights", "rank", "heat"
BUILD, FINAL = "build", "final"
HEAT_PROMPTS, FINALISTS = 4, 3
FINAL_SHARE = 0.3  # of the budget is reserved for the final, or less where it takes less
FORMATS_SHARE = 0.5  # of what is left may go to weight formats: drafters bring more
_CONVERSION_S = 50.0  # a gigabyte of 16-bit weights; 1.5B on two cores of an EPYC (AVX2)
RETRIEVAL = ("ngram", "suffix", "recycle", "ngram|recycle", "suffix|recycle")
EXIT = "early-exit"
# What drafters are taken to bring before anything is measured of them: the order in which they are tried.
MADE_FOR_IT, RETRIEVED, UNKNOWN = 1.3, 1.1, 1.0
_RANK_S = 8.0  # to load a draft, and to have it read
_SOURCE_STEPS = 4.0  # of the source in f32, in steps of the target


@dataclass(frozen=True)
class Step:
    """Hold one step.

    kind:    as above. what: for people.
    seconds: estimate; None = unknown. rough: whether the estimate is only that of an order of magnitude.
    methods: of a heat; models: alias -> model, as methods name them.
    skip:    why it is left out; "" = it is not.
    training: of a build.
    """

    kind: str
    what: str
    seconds: float | None = None
    rough: bool = False
    methods: tuple[str, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    skip: str = ""
    training: Training | None = None


@dataclass(frozen=True)
class Facts:
    """Hold what a plan rests on.

    costs:    measured ones of the target; None = none yet.
    ready:    whether the target needs no download and no conversion.
    formats:  weight formats to compare; the first is the device's own.
    unconverted: how many of them, and of the source to compare with, need a conversion.
    half_gb:  gigabytes of the target's weights in 16 bits.
    siblings, early, tree: draft models; whether the target exits early; whether it verifies trees.
    mtp:      whether the target has its own weights for multi-token prediction.
    source:   model to train a parallel draft from; "" = none. head: whether to train a draft head.
    prompt_tokens, max_new_tokens, num_prompts: of the measurement; 0 = unknown.
    calibrated: aliases of the draft models that are measured; MTP where that of the target is.
    promises: alias -> expected speed-up with this draft model (`promise.py`), where it is known.
    """

    costs: StepCosts | None
    ready: bool
    formats: tuple[str, ...]
    unconverted: int
    half_gb: float
    siblings: tuple[Sibling, ...]
    early: bool
    tree: bool
    source: str
    prompt_tokens: int
    max_new_tokens: int
    num_prompts: int
    retrieval: tuple[str, ...] = RETRIEVAL
    calibrated: frozenset[str] = frozenset()
    mtp: bool = False
    head: bool = False
    promises: Mapping[str, float] = field(default_factory=dict)

    @property
    def unranked(self) -> list[Sibling]:
        """The draft models of which it can be measured what they promise, and was not."""
        return [each for each in self.siblings if not each.head and each.alias not in self.promises]


def make(facts: Facts, budget_s: float) -> list[Step]:
    """Return the steps in order. Those that do not fit into the budget say so in `skip`."""
    steps: list[Step] = []
    if facts.costs is None:
        steps.append(Step(CALIBRATE, "measure the target's steps", calibration_s(budget_s) + 5.0))
    if len(facts.formats) > 1:
        steps.append(_formats(facts))
    if facts.unranked:
        steps.append(_rank(facts))
    steps += trials(facts)
    final = _final(facts)
    for training, possible in ((HEAD, facts.head), (PARALLEL, facts.source)):
        if possible:
            others = sum(step.seconds or 0.0 for step in (*steps, final) if not step.skip)
            steps.append(_build(facts, training, budget_s, others))
    return _within([*steps, final], budget_s)


def trials(facts: Facts) -> list[Step]:
    """Return the steps that try drafters. What promises most comes first, as the time may end."""
    ranked = [(RETRIEVED, [_heat(facts, "drafters without a model", facts.retrieval)])]
    for sibling in facts.siblings:
        promise = facts.promises.get(sibling.alias, MADE_FOR_IT if sibling.head else UNKNOWN)
        ranked.append((promise, _with_draft(facts, sibling)))
    if facts.mtp:
        ranked.append((MADE_FOR_IT, _with_mtp(facts)))
    if facts.early:  # after the others of its promise: it takes long to find the exit
        ranked.append((UNKNOWN, _with_exit(facts)))
    ranked.sort(key=lambda each: -each[0])  # stable
    return [step for _, steps in ranked for step in steps]


def _with_draft(facts: Facts, sibling: Sibling) -> list[Step]:
    models = {sibling.alias: sibling.model}
    methods = with_model(sibling.alias, facts.tree and not sibling.head)
    heat = _heat(facts, f"draft {sibling.name} ({sibling.why})", methods, models)
    if sibling.alias in facts.calibrated:
        return [heat]
    what = f"measure the steps of {sibling.name}, and choose its head"
    return [Step(CALIBRATE, what, 3 * DRAFT_S, models=models), heat]


def _with_mtp(facts: Facts) -> list[Step]:
    what = "the model's own multi-token prediction"
    heat = _heat(facts, what, (MTP, f"ngram|{MTP}", f"suffix|{MTP}"))
    if MTP in facts.calibrated:
        return [heat]
    return [Step(CALIBRATE, f"measure {what}, and choose its head", 3 * DRAFT_S, methods=(MTP,)), heat]


def _with_exit(facts: Facts) -> list[Step]:
    search = Step(CALIBRATE, "find the best early exit", TARGET_S + 4 * DRAFT_S, True, (EXIT,))
    return [search, _heat(facts, "the model's own first layers", (EXIT, f"ngram|{EXIT}"))]


def with_model(alias: str, tree: bool) -> tuple[str, ...]:
    """Return the methods that use a draft model."""
    return (alias, f"ngram|{alias}", f"suffix|{alias}", *([f"graft({alias})"] if tree else []))


def calibration_s(budget_s: float) -> float:
    """Return the seconds for measuring the target's steps: less where the whole budget is small."""
    return min(TARGET_S, 0.1 * budget_s)


def contexts(budget_s: float) -> tuple[int, ...]:
    """Return the contexts at which the target's steps are measured: fewer where the whole budget is small."""
    return CONTEXTS if budget_s >= 600 else CONTEXTS[:2] if budget_s >= 200 else CONTEXTS[:1]


def answer_s(facts: Facts) -> float | None:
    """Return the seconds of one plain answer by the target's measured costs."""
    costs = facts.costs
    if costs is None or not facts.prompt_tokens:
        return None
    widest = costs.widths[-1]
    reading = facts.prompt_tokens * costs.step(widest, facts.prompt_tokens) / widest
    return reading + facts.max_new_tokens * costs.step(1, facts.prompt_tokens)


def reserve_s(final: Step, budget_s: float) -> float:
    """Return the seconds of the budget that are kept for the final."""
    share = FINAL_SHARE * budget_s
    return share if final.seconds is None else min(share, final.seconds)


def least_s(step: Step, facts: Facts) -> float:
    """Return the seconds that a step takes at least: with one prompt, or with the least text; 0 = unknown."""
    if step.kind in (HEAT, FINAL):
        return (2 + (len(step.methods) or FINALISTS)) * (answer_s(facts) or 0.0)
    if step.training is not None and facts.costs is not None:
        return step.training.least * step.training.token_s(facts.costs)
    return step.seconds or 0.0


def _heat(facts: Facts, what: str, methods: Sequence[str], models: Mapping[str, str] | None = None) -> Step:
    answer, prompts = answer_s(facts), min(HEAT_PROMPTS, facts.num_prompts)
    seconds = None if answer is None else prompts * (2 + len(methods)) * answer
    return Step(HEAT, what, seconds, methods=tuple(methods), models=models or {})


def _final(facts: Facts) -> Step:
    answer = answer_s(facts)
    seconds = None if answer is None else facts.num_prompts * (2 + FINALISTS) * answer
    return Step(FINAL, f"the best {FINALISTS} together on all {facts.num_prompts or ''} prompts", seconds)


def _rank(facts: Facts) -> Step:
    names = ", ".join(each.name for each in facts.unranked)
    what = f"see what draft models promise, to try the best first: {names}"
    if facts.costs is None:
        return Step(RANK, what)
    writing = SAMPLE_TOKENS * facts.costs.step(min(len(PROMPTS), facts.costs.widths[-1]), SAMPLE_TOKENS)
    return Step(RANK, what, writing + _RANK_S * len(facts.unranked), rough=True)


def _formats(facts: Facts) -> Step:
    """Conversions, answers of the source, one reading of them by each format, and eight rounds of steps."""
    what = f"compare weights: {', '.join(facts.formats)}"
    if facts.costs is None:
        return Step(FORMATS, what)
    one, widest = facts.costs.step(1, 256), facts.costs.widths[-1]
    reading = facts.costs.step(widest, 256) / widest
    writing = 8 * 96 * one * _SOURCE_STEPS
    each = 8 * 140 * reading * (1 + _SOURCE_STEPS) + 8 * (60 * one + 140 * reading)
    converting = facts.unconverted * facts.half_gb * _CONVERSION_S
    return Step(FORMATS, what, converting + writing + len(facts.formats) * each, rough=True)


def _build(facts: Facts, training: Training, budget_s: float, others_s: float) -> Step:
    what = f"build {training.what}" + (f" from {facts.source}" if training is PARALLEL else "")
    if facts.costs is None:
        return Step(BUILD, what, rough=True, training=training)
    tokens, each = training.tokens(facts.costs, budget_s - others_s), training.token_s(facts.costs)
    skip = ""
    if tokens < training.least:
        tokens = training.least
        skip = f"needs a budget of {written(others_s + 1.1 * tokens * each)}"
    return Step(
        BUILD, f"{what}, on {tokens} tokens of text", tokens * each, True, skip=skip, training=training
    )


def _within(steps: Sequence[Step], budget_s: float) -> list[Step]:
    """Return the steps; those beyond the budget are marked as skipped."""
    found: list[Step] = []
    left = budget_s - reserve_s(steps[-1], budget_s)
    for step in steps:
        most = max(0.0, left * (FORMATS_SHARE if step.kind == FORMATS else 1.0))
        too_long = step.seconds is not None and step.seconds > most
        if step.kind in (FORMATS, BUILD) and not step.skip and too_long:
            why = f"takes about {written(step.seconds or 0.0)}; the budget leaves {written(most)} for it"
            step = replace(step, skip=why)  # noqa: PLW2901
        found.append(step)
        if not step.skip and step.kind != FINAL:
            left -= step.seconds or 0.0
    return found
