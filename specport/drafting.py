"""Builds the drafter that a `--draft` expression names.

none | auto | PART | PART|PART ...        PART: ngram, suffix or MODEL (as for --model, also model:MODEL)

Under the policy "planned" the parts are what the planner chooses from; under any other, the first that
has something to propose wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specport.core.costs import StepCosts
from specport.core.planner import UNKNOWN_COST, Planner, Source
from specport.core.ports import Drafter, Model
from specport.drafters.cascade import Cascade
from specport.drafters.history import History
from specport.drafters.model import ModelDrafter
from specport.drafters.ngram import NgramDrafter
from specport.drafters.suffix import SuffixDrafter
from specport.drafters.suffix_index import SuffixIndex
from specport.errors import InvalidInput, ModelError
from specport.models.tokenizer import Tokenizer

NGRAM, SUFFIX = "ngram", "suffix"  # drafters without a model
STRONG_MATCH = 3  # matched tokens behind which an n-gram is trusted more than a model
# Path probability down to which suffixes are drafted: alone as SuffixDecoding does, before a model only what
# that would hardly guess better, and for a planner all that could pay on any device.
LEAST_ALONE, LEAST_BEFORE_MODEL, LEAST_PLANNED = 0.1, 0.5, 0.05
# Tokens of the context that a draft reads at once, and the plain steps that reading them may take.
MIN_WINDOW, MAX_WINDOW, READING_STEPS = 64, 4096, 4.0
AUTO = NGRAM  # what `auto` means until a draft bundle is at hand: pays where text repeats, costs nothing


@dataclass(frozen=True)
class DraftModel:
    """A loaded draft and the tokenizer it speaks. Columns of a cut head have their ids in token_map."""

    model: Model
    tokenizer: Tokenizer
    name: str
    costs: StepCosts
    token_map: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Retrieval:
    """What `suffix` looks into beside the text itself; None: nothing. See `SuffixDrafter`."""

    history: History | None = None
    datastore: SuffixIndex | None = None


def parse(expression: str) -> list[str]:
    """The parts of an expression, first to last: "ngram", "suffix" or "model:SPEC". Empty for "none".

    Raises InvalidInput for an empty part, or for auto and none inside a longer expression.
    """
    if expression == "none":
        return []
    parts = [part.strip() for part in (AUTO if expression == "auto" else expression).split("|")]
    for part in parts:
        if not part or part in ("auto", "none", "model:"):
            raise InvalidInput(
                f"cannot read the draft expression {expression!r}",
                "use none, auto, ngram, suffix, a model, or several of them like 'suffix|MODEL'",
            )
    return [p if p in (NGRAM, SUFFIX) or p.startswith("model:") else f"model:{p}" for p in parts]


def models_in(parts: list[str]) -> list[str]:
    """The models that these parts (see `parse`) name."""
    return [part.removeprefix("model:") for part in parts if part.startswith("model:")]


def build(
    parts: list[str],
    target: Model,
    tokenizer: Tokenizer,
    load_draft: Callable[[str], DraftModel],
    *,
    planned: bool,
    costs: StepCosts,
    retrieval: Retrieval = Retrieval(),
) -> Drafter | None:
    """The drafter for `parts` (see `parse`), or None when there are none.

    costs: of the target's steps.
    Raises ModelError when a draft speaks another tokenizer than the target.
    """
    sources: list[Source] = []
    for i, part in enumerate(parts):
        if part in (NGRAM, SUFFIX):
            model_follows = any(other.startswith("model:") for other in parts[i:])
            if part == NGRAM:
                sources.append(Source(_ngram(planned, model_follows)))
            else:
                tree = target.capabilities.tree
                sources.append(Source(_suffix(planned, model_follows, tree, retrieval)))
            continue
        draft = load_draft(part.removeprefix("model:"))
        if wrong := draft.tokenizer.mismatch(tokenizer):
            raise ModelError(
                f"the draft {draft.name} has another tokenizer than the target: {wrong}",
                "choose a draft of the target's own family, or --draft ngram",
            )
        window = reading_window(costs, draft.costs)
        model = ModelDrafter(draft.model, target.vocab_size, draft.token_map, window=window)
        sources.append(Source(model, draft.costs))
    if not sources:
        return None
    if planned:
        return Planner(sources, costs, target.capabilities)
    drafters = [source.drafter for source in sources]
    return drafters[0] if len(drafters) == 1 else Cascade(*drafters)


def reading_window(target: StepCosts, draft: StepCosts) -> int:
    """Most tokens that a draft reads at once: what it can read in the time of a few plain steps.

    On a processor that is a paragraph, and a draft that knows only that guesses nearly as well as one
    that has read for seconds; on a GPU it is the whole prompt.
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
