"""Build drafters and a policy from a draft expression and loaded models."""

from __future__ import annotations

from collections.abc import Mapping

from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.drafting import Drafting
from specport.core.policies.first_proposal import FirstProposal
from specport.core.ports import Model, Policy
from specport.drafters.context import NO_RETRIEVAL, BuildContext, DraftModel, Retrieval
from specport.drafters.forced import ForcedDrafter
from specport.drafters.registry import BUILT_IN, MODEL, MTP, UNIVERSAL, DrafterKind, registry
from specport.drafters.spec import DraftSpec, PartSpec
from specport.errors import InvalidInput, ModelError, SpecportError
from specport.text.tokenizer import Tokenizer


def build_sources(
    spec: DraftSpec,
    target: Model,
    tokenizer: Tokenizer,
    drafts: Mapping[str, DraftModel],
    *,
    planned: bool,
    costs: StepCosts,
    exit_costs: StepCosts | None = None,
    retrieval: Retrieval = NO_RETRIEVAL,
    mtp: DraftModel | None = None,
) -> list[Source]:
    """Return a drafter for each part of `spec`, with the costs of its steps.

    drafts: by the names in `spec.models`. costs, exit_costs, mtp: as in `BuildContext`.

    Raises ModelError where a draft has another tokenizer than the target, and InvalidInput for an exit that
    the target does not have or for a head on hidden states where a model is needed.
    """
    kinds = registry().kinds
    sources = []
    for i, part in enumerate(spec.parts):
        draft = drafts[part.model] if part.model is not None else None
        if draft is not None and kinds[part.kind].same_tokenizer:
            check_tokenizer(spec, part, draft.name, draft.mismatch)
        if draft is not None and draft.on_states and part.kind != MODEL:
            raise InvalidInput(f"{draft.name} is a head on hidden states, no model for {part.kind}(MODEL)")
        context = BuildContext(
            target, tokenizer, costs, draft, part.layer, exit_costs, planned,
            model_follows=any(later.model is not None or later.kind == MTP for later in spec.parts[i + 1 :]),
            retrieval=retrieval, mtp=mtp,
        )  # fmt: skip
        sources.append(_built(kinds[part.kind], context))
    return sources


def _built(kind: DrafterKind, context: BuildContext) -> Source:
    """Return what a kind of drafter builds. Raises ModelError where code of another package fails."""
    if kind.name in BUILT_IN:
        return kind.build(context)
    try:
        found = kind.build(context)
        if not isinstance(found, Source):
            raise TypeError(f"a {type(found).__name__} is no source of drafts")
        return found
    except SpecportError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"drafter {kind.name} cannot be built: {type(error).__name__}: {error}") from error


def build_policy(
    spec: DraftSpec,
    target: Model,
    tokenizer: Tokenizer,
    drafts: Mapping[str, DraftModel],
    *,
    drafting: Drafting,
    costs: StepCosts,
    exit_costs: StepCosts | None = None,
    retrieval: Retrieval = NO_RETRIEVAL,
    mtp: DraftModel | None = None,
) -> Policy | None:
    """Return the policy that chooses among the drafters of `spec`; None for plain decoding.

    Arguments and errors are those of `build_sources`. drafting: the policy and its parameters.
    """
    sources = build_sources(
        spec, target, tokenizer, drafts,
        planned=drafting.planned, costs=costs, exit_costs=exit_costs, retrieval=retrieval, mtp=mtp,
    )  # fmt: skip
    if not sources:
        return None
    if drafting.planned:
        sources = [Source(ForcedDrafter(), constrained=True), *sources]
        return Planner(sources, costs, target.capabilities, max_depth=drafting.max_depth)
    drafters = [source.drafter for source in sources]
    return FirstProposal(
        drafters, drafting.make_length_rule, tree=target.capabilities.tree, constrained=[ForcedDrafter()]
    )


def check_tokenizer(spec: DraftSpec, part: PartSpec, name: str, mismatch: str | None) -> None:
    """Raise ModelError where a draft has another tokenizer than the target.

    spec, part: the user's draft expression and the part in question; the hint repeats the expression with a
                drafter that translates.
    name:       of the draft.
    mismatch:   how its tokenizer differs, or None.
    """
    if mismatch:
        raise ModelError(
            f"the draft {name} has another tokenizer than the target: {mismatch}",
            f"choose a draft of the target's own family, or {spec.with_kind(part, UNIVERSAL).option}",
        )
