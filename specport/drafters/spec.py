"""Builds the drafter that a `--draft` expression names.

none | auto | PART | PART|PART ...

PART: ngram, suffix, recycle, MODEL (as for --model, also model:MODEL), universal(MODEL) for a draft of
another tokenizer, graft(MODEL) for a draft's tree with retrieved nodes, early-exit:E for the target's own
first E layers (early-exit: as many as `specport calibrate` found best).

Under the policy "planned" the parts are what the planner chooses from; under any other, the first that
has something to propose wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from specport.core.model_kinds import EarlyExitModel
from specport.core.planning.planner import UNKNOWN_COST, Planner, Source
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Drafter, Model, PlannedDrafter
from specport.drafters.cascade import Cascade
from specport.drafters.cross_vocab.universal import UniversalDrafter
from specport.drafters.model.drafter import EarlyExitDrafter, ModelDrafter
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.drafters.retrieval.suffix import SuffixDrafter
from specport.drafters.retrieval.suffix_index import SuffixIndex
from specport.drafters.tree.graft import VARIANTS, DraftedRound, GraftDrafter, Variant
from specport.drafters.tree.level_proposer import ModelLevels
from specport.errors import InvalidInput, ModelError
from specport.text.tokenizer import Tokenizer

NGRAM, SUFFIX, RECYCLE = WITHOUT_MODEL = ("ngram", "suffix", "recycle")
MODEL, UNIVERSAL, GRAFT = WITH_MODEL = ("model", "universal", "graft")
EARLY_EXIT = "early-exit"
STRONG_MATCH = 3  # matched tokens behind which an n-gram is trusted more than a model
# Path probability down to which suffixes are drafted: alone as SuffixDecoding does, before a model only what
# that would hardly guess better, and for a planner all that could pay on any device.
LEAST_ALONE, LEAST_BEFORE_MODEL, LEAST_PLANNED = 0.1, 0.5, 0.05
# Tokens of the context that a draft reads at once, and the plain steps that reading them may take.
MIN_WINDOW, MAX_WINDOW, READING_STEPS = 64, 4096, 40.0
AUTO = NGRAM  # what `auto` means until a draft bundle is at hand: pays where text repeats, costs nothing


@dataclass(frozen=True)
class DraftModel:
    """A loaded draft and the tokenizer it speaks. Columns of a cut head have their ids in token_map.

    graft: how graft(MODEL) shares its nodes; None = as where nothing was calibrated.
    reach: share of its drafts that are accepted to depth 1, 2, ...; () = not measured.
    """

    model: Model
    tokenizer: Tokenizer
    name: str
    costs: StepCosts
    token_map: tuple[int, ...] | None = None
    graft: Variant | None = None
    reach: tuple[float, ...] = ()


@dataclass(frozen=True)
class Retrieval:
    """What `suffix` looks into beside the text itself; None: nothing. See `SuffixDrafter`."""

    history: History | None = None
    datastore: SuffixIndex | None = None


def parse(expression: str) -> list[str]:
    """The parts of an expression, first to last: one of WITHOUT_MODEL, "KIND:SPEC" with one of WITH_MODEL, or
    "early-exit:E", where E may be missing.

    Empty for "none". Raises InvalidInput for an empty part, for auto and none inside a longer expression, and
    for two exits.
    """
    if expression == "none":
        return []
    parts = [part.strip() for part in (AUTO if expression == "auto" else expression).split("|")]
    try:
        found = [_part(part) for part in parts]
    except ValueError as error:
        raise InvalidInput(
            f"cannot read the draft expression {expression!r}",
            "use none, auto, ngram, suffix, recycle, a model, universal(MODEL), graft(MODEL), early-exit:E, "
            "or several of them like 'suffix|MODEL'",
        ) from error
    if sum(part.startswith(EARLY_EXIT) for part in found) > 1:
        raise InvalidInput(f"two exits in {expression!r}", "a target is loaded with one exit: name one")
    return found


def _part(text: str) -> str:
    if text in WITHOUT_MODEL:
        return text
    name, _, layer = text.partition(":")
    if name == EARLY_EXIT:
        if layer and not (layer.isascii() and layer.isdigit() and int(layer) > 0):
            raise ValueError(f"{layer!r} is no number of layers")
        return f"{EARLY_EXIT}:{layer}"
    kind, bracket, rest = text.partition("(")
    if bracket and kind in WITH_MODEL and rest.endswith(")"):
        text = rest[:-1].strip()
    else:
        kind = MODEL
    spec = text.removeprefix("model:")
    if not spec or spec in ("auto", "none", *WITHOUT_MODEL):
        raise ValueError(f"{spec!r} is no model")
    return f"{kind}:{spec}"


def models_in(parts: list[str]) -> list[str]:
    """The models that these parts (see `parse`) name."""
    named = [part.partition(":") for part in parts]
    return [spec for kind, _, spec in named if kind in WITH_MODEL]


def exit_in(parts: list[str]) -> int | None:
    """The layers of the part early-exit: 0 where calibration is to say, None without such a part."""
    layers = [layer for kind, _, layer in (part.partition(":") for part in parts) if kind == EARLY_EXIT]
    return int(layers[0] or 0) if layers else None


def build(
    parts: list[str],
    target: Model,
    tokenizer: Tokenizer,
    load_draft: Callable[[str], DraftModel],
    *,
    planned: bool,
    costs: StepCosts,
    exit_costs: StepCosts | None = None,
    retrieval: Retrieval = Retrieval(),
) -> Drafter | None:
    """The drafter for `parts` (see `parse`), or None when there are none.

    costs: of the target's steps. exit_costs: of its first layers, with the part early-exit.
    Raises ModelError when a draft speaks another tokenizer than the target, and InvalidInput for an exit that
    the target does not have.
    """
    tree = target.capabilities.tree
    sources: list[Source] = []
    for i, part in enumerate(parts):
        model_follows = bool(models_in(parts[i:]))
        if part == NGRAM:
            sources.append(Source(_ngram(planned, model_follows)))
        elif part == SUFFIX:
            sources.append(Source(_suffix(planned, model_follows, tree, retrieval)))
        elif part == RECYCLE:
            sources.append(Source(RecycleDrafter(target.vocab_size, branching=planned and tree)))
        elif part.startswith(EARLY_EXIT):
            if not target.capabilities.exit_layer:
                raise InvalidInput("the target was loaded without an early exit", "use specport run or bench")
            sources.append(Source(EarlyExitDrafter(cast(EarlyExitModel, target)), exit_costs))
        else:
            kind, _, spec = part.partition(":")
            draft = load_draft(spec)
            window = reading_window(costs, draft.costs)
            if kind == GRAFT:
                # A round costs no multiple of a draft step: the planner must not learn the step from it.
                check_tokenizer(draft.name, draft.tokenizer, tokenizer)
                graft = graft_drafter(draft, target.vocab_size, window, planned and tree)
                sources.append(Source(graft, draft.costs.fixed(), draft.reach))
            else:
                model = _model(kind, draft, target, window, tokenizer)
                sources.append(Source(model, draft.costs, draft.reach))
    if not sources:
        return None
    if planned:
        return Planner(sources, costs, target.capabilities)
    drafters = [source.drafter for source in sources]
    return drafters[0] if len(drafters) == 1 else Cascade(*drafters)


def reading_window(target: StepCosts, draft: StepCosts) -> int:
    """Most tokens that a draft reads at once: what it can read in the time of some plain steps.

    A draft that lacks the beginning of a prompt guesses far worse (of Spec-Bench's summaries a 0.5B says 23 %
    behind 256 tokens, and 76 % behind all of them), so this only bounds what may be read in vain. A planner
    decides whether reading is worth its time; other policies read it whatever it takes.
    """
    unit = 1.0 if draft.known == target.known else UNKNOWN_COST * target.step(1, 0) / draft.step(1, 0)
    window = MIN_WINDOW
    while window < MAX_WINDOW and unit * draft.step(2 * window, 0) <= READING_STEPS * target.step(1, 0):
        window *= 2
    return window


def _ngram(planned: bool, model_follows: bool) -> NgramDrafter:
    if planned:
        return NgramDrafter(tokens_per_match=None)
    # With a model behind it, only matches that are better than the model's own guess.
    return NgramDrafter(min_ngram=STRONG_MATCH) if model_follows else NgramDrafter()


def _suffix(planned: bool, model_follows: bool, tree: bool, among: Retrieval) -> SuffixDrafter:
    texts = among.history, among.datastore
    if planned:
        return SuffixDrafter(*texts, tokens_per_match=None, least=LEAST_PLANNED, branching=tree)
    return SuffixDrafter(*texts, least=LEAST_BEFORE_MODEL if model_follows else LEAST_ALONE)


def _model(kind: str, draft: DraftModel, target: Model, window: int, tokenizer: Tokenizer) -> PlannedDrafter:
    if kind == UNIVERSAL and draft.tokenizer.mismatch(tokenizer):
        return UniversalDrafter(
            draft.model, target.vocab_size, tokenizer, draft.tokenizer, draft.token_map, window=window
        )
    check_tokenizer(draft.name, draft.tokenizer, tokenizer)
    return ModelDrafter(draft.model, target.vocab_size, draft.token_map, window=window)


def graft_drafter(
    draft: DraftModel,
    target_vocab: int,
    window: int,
    branching: bool,
    record: Callable[[DraftedRound], None] | None = None,
) -> GraftDrafter:
    """Sure matches in the text itself are grafted first, then successors of what the target verified.

    target_vocab, window: as for `ModelDrafter`; branching, record: as for `GraftDrafter`.
    """
    levels = ModelLevels(draft.model, target_vocab, draft.token_map, window=window)
    retrieved: list[PlannedDrafter] = [
        SuffixDrafter(least=LEAST_BEFORE_MODEL),
        RecycleDrafter(target_vocab, branching=branching),
    ]
    variant = draft.graft or VARIANTS["graft"]
    return GraftDrafter(levels, retrieved, variant, branching=branching, record=record)


def check_tokenizer(name: str, own: Tokenizer, target: Tokenizer) -> None:
    """Raises ModelError when the draft of this name speaks another tokenizer than the target."""
    if wrong := own.mismatch(target):
        raise ModelError(
            f"the draft {name} has another tokenizer than the target: {wrong}",
            f"choose a draft of the target's own family, or --draft 'universal({name})'",
        )
