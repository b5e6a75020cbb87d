"""Builders of the built-in kinds of drafters; the registry has a row for each of these functions."""

from __future__ import annotations

from collections.abc import Callable

from specport.core.planning.row_plan import Source
from specport.core.ports import PlannedDrafter
from specport.drafters.context import BuildContext, DraftModel
from specport.drafters.cross_vocab.universal import UniversalDrafter
from specport.drafters.model.drafter import EarlyExitDrafter, ModelDrafter
from specport.drafters.model.hidden_head import HiddenHeadDrafter
from specport.drafters.model.mtp import MtpDrafter
from specport.drafters.model.parallel import ParallelDrafter
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.drafters.retrieval.suffix import SuffixDrafter
from specport.drafters.tree.graft import VARIANTS, DraftedRound, GraftDrafter
from specport.drafters.tree.level_proposer import ModelLevels
from specport.errors import InvalidInput

STRONG_MATCH = 3  # matched tokens from which on an n-gram is trusted more than a model
# Least path probability at which suffixes are drafted: alone, as in SuffixDecoding; before a model, only what
# the model would hardly guess better; for a planner, all that could pay on any device.
LEAST_ALONE, LEAST_BEFORE_MODEL, LEAST_PLANNED = 0.1, 0.5, 0.05


def ngram(context: BuildContext) -> Source:
    if context.planned:
        return Source(NgramDrafter(tokens_per_match=None))
    # Before a model, only matches that are better than the model's own guess.
    return Source(NgramDrafter(min_ngram=STRONG_MATCH) if context.model_follows else NgramDrafter())


def suffix(context: BuildContext) -> Source:
    texts = context.retrieval.history, context.retrieval.datastore
    if context.planned:
        return Source(
            SuffixDrafter(*texts, tokens_per_match=None, least=LEAST_PLANNED, branching=context.branching)
        )
    return Source(SuffixDrafter(*texts, least=LEAST_BEFORE_MODEL if context.model_follows else LEAST_ALONE))


def recycle(context: BuildContext) -> Source:
    return Source(RecycleDrafter(context.target.vocab_size, branching=context.branching))


def model(context: BuildContext) -> Source:
    draft = context.loaded
    if draft.head is not None:
        on_states = HiddenHeadDrafter(draft.head, context.target.vocab_size)
        return Source(on_states, draft.costs, draft.reach, draft.assumed)
    if draft.mtp:
        return _mtp(draft, context)
    drafter = own_model(draft, context.target.vocab_size, context.window)
    return Source(drafter, draft.costs, draft.reach, draft.assumed)


def own_model(draft: DraftModel, target_vocab: int, window: int) -> PlannedDrafter:
    """Return a drafter with a model that has its own cache, and the target's tokenizer.

    target_vocab, window: as for `ModelDrafter`.
    """
    vocab = draft.target_vocab(target_vocab)
    if about := draft.parallel:
        return ParallelDrafter(
            draft.model, vocab, about.mask_token_id, about.temperatures, draft.token_map,
            window=window, prefixes=draft.prefixes, bigrams=draft.bigrams, costs=draft.costs.fixed(),
        )  # fmt: skip
    return ModelDrafter(draft.model, vocab, draft.token_map, window=window, prefixes=draft.prefixes)


def universal(context: BuildContext) -> Source:
    draft = context.loaded
    if not draft.mismatch:
        return model(context)
    vocab = draft.target_vocab(context.target.vocab_size)
    drafter = UniversalDrafter(
        draft.model, vocab, context.tokenizer, draft.tokenizer, draft.token_map,
        window=context.window, prefixes=draft.prefixes,
    )  # fmt: skip
    return Source(drafter, draft.costs, draft.reach, draft.assumed)


def graft(context: BuildContext) -> Source:
    draft = context.loaded
    drafter = graft_drafter(draft, context.target.vocab_size, context.window, context.branching)
    # The cost of a round is no multiple of a draft step, so the planner must not learn the step from it.
    return Source(drafter, draft.costs.fixed(), draft.reach)


def early_exit(context: BuildContext) -> Source:
    if context.target.early_exit is None:
        raise InvalidInput("the target was loaded without an early exit", "use specport run or bench")
    return Source(EarlyExitDrafter(context.target), context.exit_costs)


def mtp(context: BuildContext) -> Source:
    module = context.mtp
    if module is None:
        raise InvalidInput(
            "the target was loaded without its module for multi-token prediction", "use specport run"
        )
    return _mtp(module, context)


def _mtp(module: DraftModel, context: BuildContext) -> Source:
    drafter = MtpDrafter(module.model, context.target.vocab_size, module.token_map)
    return Source(drafter, module.costs, module.reach, module.assumed)


def graft_drafter(
    draft: DraftModel,
    target_vocab: int,
    window: int,
    branching: bool,
    record: Callable[[DraftedRound], None] | None = None,
) -> GraftDrafter:
    """Return a drafter that grafts likely suffix matches first, then recycled successors.

    target_vocab, window: as for `ModelDrafter`; branching, record: as for `GraftDrafter`.
    """
    vocab = draft.target_vocab(target_vocab)
    levels = ModelLevels(draft.model, vocab, draft.token_map, window=window, prefixes=draft.prefixes)
    retrieved: list[PlannedDrafter] = [
        SuffixDrafter(least=LEAST_BEFORE_MODEL),
        RecycleDrafter(target_vocab, branching=branching),
    ]
    variant = draft.graft or VARIANTS["graft"]
    return GraftDrafter(levels, retrieved, variant, branching=branching, record=record)
