"""Builds the drafter that a `--draft` expression names.

none | auto | ngram | MODEL | ngram|MODEL        (MODEL as for --model, also written model:MODEL)

A model behind others is asked only while it pays; a model alone always drafts, as its policy says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from specport.core.ports import Drafter, Model
from specport.drafters.cascade import Cascade
from specport.drafters.gate import WhilePaying
from specport.drafters.model import ModelDrafter
from specport.drafters.ngram import NgramDrafter
from specport.errors import InvalidInput, ModelError
from specport.models.tokenizer import Tokenizer

STRONG_MATCH = 3  # matched tokens behind which an n-gram is trusted more than a model
AUTO = "ngram"  # what `auto` means until a draft bundle is at hand: pays where text repeats, costs nothing


@dataclass(frozen=True)
class DraftModel:
    """A loaded draft and the tokenizer it speaks. Columns of a cut head have their ids in token_map."""

    model: Model
    tokenizer: Tokenizer
    name: str
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


def build(
    parts: list[str],
    target: Model,
    tokenizer: Tokenizer,
    load_draft: Callable[[str], DraftModel],
    cost: Mapping[int, float],
) -> Drafter | None:
    """The drafter for `parts` (see `parse`), or None when there are none. cost: see `Profile.cost`.

    Raises ModelError when a draft speaks another tokenizer than the target.
    """
    drafters: list[Drafter] = []
    for part in parts:
        if part == "ngram":
            # With a model behind it, only matches that are better than the model's own guess.
            drafters.append(NgramDrafter() if part is parts[-1] else NgramDrafter(min_ngram=STRONG_MATCH))
            continue
        draft = load_draft(part.removeprefix("model:"))
        if wrong := draft.tokenizer.mismatch(tokenizer):
            raise ModelError(
                f"the draft {draft.name} has another tokenizer than the target: {wrong}",
                "choose a draft of the target's own family, or --draft ngram",
            )
        model = ModelDrafter(draft.model, target.vocab_size, draft.token_map)
        drafters.append(WhilePaying(model, cost) if drafters else model)
    if len(drafters) > 1 and parts[0] == "ngram":
        # What the model is not asked for, weaker matches may still try: they cost nothing to draft.
        drafters.append(NgramDrafter())
    if not drafters:
        return None
    return drafters[0] if len(drafters) == 1 else Cascade(*drafters)
