"""Inputs of a drafter's builder: loaded models, their measurements, and the texts for retrieval."""

from __future__ import annotations

from dataclasses import dataclass

from specport.core.planning.model_draft import UNKNOWN_COST
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import HiddenHead, Model
from specport.core.prefix_cache import PrefixCache
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.suffix_index import SuffixIndex
from specport.drafters.tree.graft import Variant
from specport.models.kinds.bigrams import Bigrams
from specport.models.kinds.parallel import Parallel
from specport.text.tokenizer import Tokenizer

# Bounds on the context tokens that a draft reads at once, and the plain target steps that this may take.
MIN_WINDOW, MAX_WINDOW, READING_STEPS = 64, 4096, 40.0


@dataclass(frozen=True)
class DraftModel:
    """Hold a loaded draft model, its tokenizer and its measurements.

    costs:     of its steps.
    token_map: ids of the columns of a cut head; None = a whole head.
    graft:     calibrated variant of graft(MODEL); None = the default.
    reach:     share of its drafts that are accepted to depth 1, 2, ...; () = not measured.
    parallel:  how it drafts several tokens in one pass; None = token by token.
    bigrams:   by which such drafts are ranked; None = by nothing but the model.
    mismatch:  how its tokenizer differs from the target's (`Tokenizer.mismatch`); None = ids mean the same.
    head:      of the target, to draft from its hidden states; `model` is the target then. None = a model.
    mtp:       whether `model` is a module for multi-token prediction, which reads the target's states.
    prefixes:  of the model: beginnings of contexts that it need not read again; None = none.
    assumed:   seconds of its step in plain steps of the target, before anything was timed; None = unknown.
    """

    model: Model
    tokenizer: Tokenizer
    name: str
    costs: StepCosts
    token_map: tuple[int, ...] | None = None
    graft: Variant | None = None
    reach: tuple[float, ...] = ()
    parallel: Parallel | None = None
    mismatch: str | None = None
    head: HiddenHead | None = None
    mtp: bool = False
    assumed: float | None = None
    prefixes: PrefixCache | None = None
    bigrams: Bigrams | None = None

    @property
    def on_states(self) -> bool:
        """Return whether it is a head on the target's hidden states, no model of its own."""
        return self.head is not None or self.mtp

    def target_vocab(self, vocab_size: int) -> int:
        """Return the number of a target's ids that may be drafted: those below MASK."""
        return vocab_size if self.parallel is None else min(vocab_size, self.parallel.mask_token_id)


@dataclass(frozen=True)
class Retrieval:
    """Hold the texts that `suffix` searches in addition to the context; None = none. See `SuffixDrafter`."""

    history: History | None = None
    datastore: SuffixIndex | None = None


NO_RETRIEVAL = Retrieval()


@dataclass(frozen=True)
class BuildContext:
    """Hold the inputs of a drafter's builder.

    draft:         the model, for kinds that take one.
    layer:         of the target, for kinds that take one; 0 = the calibrated one.
    costs:         of the target's steps; exit_costs: of its first layers, where it exits early.
    mtp:           the target's own module for multi-token prediction, where it was loaded.
    planned:       whether the planner cuts drafts; else the first drafter with a proposal wins.
    model_follows: whether a drafter with a model follows in the expression.
    """

    target: Model
    tokenizer: Tokenizer
    costs: StepCosts
    draft: DraftModel | None = None
    layer: int | None = None
    exit_costs: StepCosts | None = None
    planned: bool = True
    model_follows: bool = False
    retrieval: Retrieval = NO_RETRIEVAL
    mtp: DraftModel | None = None

    @property
    def loaded(self) -> DraftModel:
        """Return `draft`, for kinds that take a model."""
        assert self.draft is not None
        return self.draft

    @property
    def branching(self) -> bool:
        """Return whether to draft trees also where the plan has no branches."""
        return self.planned and self.target.capabilities.tree

    @property
    def window(self) -> int:
        """Return the maximum number of context tokens that the draft reads at once."""
        return reading_window(self.costs, self.loaded.costs)


def reading_window(target: StepCosts, draft: StepCosts) -> int:
    """Return the maximum number of tokens that a draft reads at once, bounded by READING_STEPS plain steps.

    A draft that lacks the beginning of a prompt guesses far worse (on Spec-Bench's summaries a 0.5B model is
    right in 23 % with 256 tokens of context, and in 76 % with all of it). So this only bounds the time that
    may be spent in vain. A planner decides whether reading pays; other policies always read.
    """
    unit = 1.0 if draft.known == target.known else UNKNOWN_COST * target.step(1, 0) / draft.step(1, 0)
    window = MIN_WINDOW
    while window < MAX_WINDOW and unit * draft.step(2 * window, 0) <= READING_STEPS * target.step(1, 0):
        window *= 2
    return window
