"""Builds the drafter that a `--draft` expression names.

none | auto | ngram | MODEL | ngram|MODEL        (MODEL as for --model, also written model:MODEL)

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
from specport.drafters.model import ModelDrafter
from specport.drafters.ngram import NgramDrafter
from specport.errors import InvalidInput, ModelError
from specport.models.tokenizer import Tokenizer

STRONG_MATCH = 3  # matched tokens behind which an n-gram is trusted more than a model
# Tokens of the context that a draft reads at once, and the plain steps that reading them may take.
MIN_WINDOW, MAX_WINDOW, READING_STEPS = 64, 4096, 4.0
AUTO = "ngram"  # what `auto` means until a draft bundle is at hand: pays where text repeats, costs nothing


@dataclass(frozen=True)
class DraftModel:
    """A loaded draft and the tokenizer it speaks. Columns of a cut head have their ids in token_map."""

    model: Model
    tokenizer: Tokenizer
    name: str
    costs: StepCosts
    token_map: tuple[int, ...] | None = None


def parse(expression: str) -> list[str]:
    """The parts of an expression, first to last: "ngram" or "model:SPEC". Empty for "none".

    Raises InvalidInput for an empty part, or for auto and none inside a longer expression.
    """
    if expression == "none":
        return []
    parts = [part.strip() for part in (AUTO if expression == "auto" else expression).split("|")]
    for part in parts:
        if not part or part in ("auto", "none", "model:"):
            raise InvalidInput(
                f"cannot read the draft expression {expression!r}",
                "use none, auto, ngram, a model, or 'ngram|MODEL'",
            )
    return [part if part == "ngram" or part.startswith("model:") else f"model:{part}" for part in parts]


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
) -> Drafter | None:
    """The drafter for `parts` (see `parse`), or None when there are none. costs: of the target's steps.

    Raises ModelError when a draft speaks another tokenizer than the target.
    """
    sources: list[Source] = []
    for part in parts:
        if part == "ngram":
            sources.append(Source(_ngram(planned, last=part is parts[-1])))
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


def _ngram(planned: bool, last: bool) -> NgramDrafter:
    if planned:
        return NgramDrafter(tokens_per_match=None)
    # With a model behind it, only matches that are better than the model's own guess.
    return NgramDrafter() if last else NgramDrafter(min_ngram=STRONG_MATCH)
