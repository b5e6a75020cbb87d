"""Calibrate a target's own module for multi-token prediction: how much of the head it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from specport.calibration import heads
from specport.calibration.heads import Head
from specport.calibration.target_text import Text
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import HEAD_INPUT, Array, Block, Model, Row, StepOutput
from specport.drafters.spec import DraftSpec
from specport.errors import DeviceError
from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded
from specport.runtime.drafts.mtp import module_of
from specport.runtime.loading import Loader
from specport.runtime.stored import measurements


@dataclass
class _Pair:
    """Hold a text's handles in the target and in the module, and the target's states of it.

    last: [1, width] of the last committed token; None = of no token. read: of the tokens of the last step.
    skipped: tokens of that step that the module did not read: the first of a text has no state before it.
    """

    target: Any
    module: Any
    last: Array | None = None
    read: Array | None = None
    skipped: int = 0


class BesideTarget:
    """Let a module read texts like a draft model (`target_text.along`): its target gives the states."""

    def __init__(self, target: Model, module: Model) -> None:
        self._target, self._module = target, module
        self.vocab_size, self.max_context = module.vocab_size, target.max_context

    def open(self, capacity: int = 0) -> _Pair:
        return _Pair(self._target.open(capacity), self._module.open(capacity))

    def step(self, rows: Sequence[Row]) -> StepOutput:
        """Step one row, a chain."""
        (row,) = rows
        pair: _Pair = row.handle
        output = self._target.step([Row(pair.target, row.block, logits="none", hidden="all")])
        states = output.hidden_of(0)[HEAD_INPUT]
        xp = array_namespace(states)
        pair.read = xp.asarray(states, copy=True)
        first = 0.0 * pair.read[:1, :] if pair.last is None else pair.last
        before = xp.concat([first, pair.read[:-1, :]])
        pair.skipped = int(pair.last is None and row.logits == "none")
        block = Block.chain(row.block.tokens[pair.skipped :])
        if not len(block):
            return output
        before = before[pair.skipped :, :]
        return self._module.step([Row(pair.module, block, logits=row.logits, states=before)])

    def commit(self, handle: _Pair, nodes: Sequence[int]) -> None:
        """Keep all tokens of the last step."""
        self._target.commit(handle.target, nodes)
        if len(nodes) > handle.skipped:
            self._module.commit(handle.module, range(len(nodes) - handle.skipped))
        if nodes and handle.read is not None:
            handle.last = handle.read[nodes[-1] : nodes[-1] + 1, :]

    def close(self, handle: _Pair) -> None:
        self._target.close(handle.target)
        self._module.close(handle.module)


@dataclass(frozen=True)
class Chosen:
    """Hold a module that was loaded with the best head. tried: all sizes of head, the whole one first."""

    files: ModelFiles
    loaded: Loaded
    tried: tuple[Head, ...]


def choose(
    spec: DraftSpec,
    loader: Loader,
    files: ModelFiles,
    exact: bool,
    texts: Sequence[Text],
    costs: StepCosts,
    always: Sequence[int],
) -> Chosen:
    """Choose the size of the head of a target's module, store it, and load the module with it.

    spec: names the module. files, exact: of the target. texts, costs, always: as for `compare`.
    Raises SpecportError.
    """
    module = module_of(spec, files, loader)

    def load(tokens: tuple[int, ...] | None) -> tuple[Model, Model]:
        model = loader.target_with(files, exact, mtp=module, mtp_tokens=tokens).model
        if module is None or model.mtp is None:
            raise DeviceError(
                f"models have no multi-token prediction on {loader.profile.name}", "choose another --draft"
            )
        return model, model.mtp

    tried = compare(lambda tokens: load(tokens)[1], load(None)[0], texts, costs, always)
    tokens = heads.best(tried).tokens
    _, chosen = load(tokens)
    assert module is not None  # it was loaded
    measurements.save_cut(module.fingerprint, loader.profile.name, tokens)
    return Chosen(module, Loaded(chosen, head_tokens=tokens), tried)


def compare(
    load: Callable[[tuple[int, ...]], Model],
    target: Model,
    texts: Sequence[Text],
    costs: StepCosts,
    always: Sequence[int],
) -> tuple[Head, ...]:
    """Return the cost and agreement of each size of the head of a target's module, the whole head first.

    load: returns the target's module with its head cut to these ids. Only the smallest head is loaded and
          timed: a head's time is proportional to its size.
    always: ids that every head keeps.
    """
    module = target.mtp
    assert module is not None  # the target was loaded with it
    vocab, seconds = module.vocab_size, heads.step_seconds(module)
    cuts: list[tuple[int, ...] | None] = [None]
    cuts += [heads.kept_ids(size, vocab, always) for size in heads.sizes(vocab)]
    sizes = [vocab if cut is None else len(cut) for cut in cuts]
    least, with_context = 1.0, False
    if cuts[-1] is not None:
        smallest = load(cuts[-1])
        least, with_context = heads.step_ratio(module, smallest), smallest.head_rows is not None
        del smallest
    shares = heads.agreements(
        BesideTarget(target, module),  # type: ignore[arg-type]  # it has what `along` calls
        texts, cuts, with_context=with_context,
    )  # fmt: skip
    found = []
    for cut, size, share in zip(cuts, sizes, shares, strict=True):
        part = (size - sizes[-1]) / max(1, vocab - sizes[-1])
        cost = seconds * (least + (1.0 - least) * part) if cut is not None else seconds
        found.append(Head(cut, size, cost, share, heads.expected_speed(share, cost, costs)))
    return tuple(found)
