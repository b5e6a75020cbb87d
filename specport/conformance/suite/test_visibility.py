"""Visibility: a token depends on the committed tokens and on those of its block that the mask shows it.

Run in exact mode and without. Where a mask is that of a chain or a tree, an exact device owes the chain's or
tree's bits; any other comparison here allows what `Probe.check` allows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from specport.conformance.steps import Array, Probe
from specport.core.ports import Block, CacheHandle, Row

pytestmark = pytest.mark.needs(visibility="any")
PASTS = [0, 5, 29, 32]  # a block begins at, before and behind the borders of a cache's blocks
Mask = NDArray[np.bool_]


@pytest.fixture(params=PASTS)
def past(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def started(any_probe: Probe, ids: list[int], past: int) -> Iterator[CacheHandle]:
    """A sequence that holds `past` tokens."""
    handle = any_probe.opened(ids[:past])
    yield handle
    any_probe.model.close(handle)


def stepped(probe: Probe, handle: CacheHandle, block: Block) -> Array:
    """Return the logits of a block, [tokens, vocab]; nothing is committed."""
    (logits,) = probe.step(Row(handle, block))
    return logits


def reached(visible: Mask) -> Mask:
    """Return which tokens can have an effect on which: through a token that sees them, in a later layer."""
    found = visible.copy()
    for _ in range(len(found)):
        found = found @ found
    return found


def mask(*rows: str) -> Mask:
    """Return a mask that is drawn with an x where a token is seen."""
    return np.array([[c == "x" for c in row] for row in rows], dtype=np.bool_)


def test_the_mask_of_a_chain(any_probe: Probe, started: CacheHandle, ids: list[int], past: int) -> None:
    tokens = tuple(ids[past : past + 6])
    block = Block(tokens, tuple(range(6)), np.tri(6, dtype=np.bool_))
    chain = stepped(any_probe, started, Block.chain(tokens))
    any_probe.check(stepped(any_probe, started, block), chain)


def test_every_path_through_a_mask_of_a_tree(
    any_probe: Probe, started: CacheHandle, ids: list[int], past: int
) -> None:
    visible = mask("x.....", "xx....", "x.x...", "xx.x..", "x.x.x.", "xx.x.x")
    tokens, positions = (*ids[past : past + 4], 9, 11), (0, 1, 1, 2, 2, 3)
    logits = stepped(any_probe, started, Block(tokens, positions, visible))
    for leaf in (4, 5):
        path = np.flatnonzero(visible[leaf]).tolist()
        chain = stepped(any_probe, started, Block.chain([tokens[node] for node in path]))
        any_probe.check(logits[path], chain)


def test_tokens_in_another_order(any_probe: Probe, started: CacheHandle, ids: list[int], past: int) -> None:
    """Positions and the mask say what a token is, not its place in the block: later ones are seen as well."""
    tokens = np.array(ids[past : past + 6])
    chain = stepped(any_probe, started, Block.chain(tokens.tolist()))
    order = np.array([4, 0, 3, 5, 2, 1])
    shuffled = Block(
        tuple(tokens[order].tolist()), tuple(order.tolist()), np.tri(6, dtype=np.bool_)[np.ix_(order, order)]
    )
    any_probe.check_close(stepped(any_probe, started, shuffled), chain[order])


def test_tokens_that_all_see_one_another(
    any_probe: Probe, started: CacheHandle, ids: list[int], past: int
) -> None:
    """As masked diffusion steps them: each token's logits depend on every other token."""
    tokens, everything = ids[past : past + 5], np.ones((5, 5), dtype=np.bool_)
    first = stepped(any_probe, started, Block(tuple(tokens), tuple(range(5)), everything))
    for changed in range(5):
        other = [t + 1 if i == changed else t for i, t in enumerate(tokens)]
        logits = stepped(any_probe, started, Block(tuple(other), tuple(range(5)), everything))
        moved = np.abs(logits - first).max(axis=1)
        assert moved.min() > 0, f"token {int(moved.argmin())} does not see token {changed}"
    chain = stepped(any_probe, started, Block.chain(tokens))
    assert np.abs(first[:-1] - chain[:-1]).max(axis=1).min() > 0, "later tokens have no effect"


@pytest.mark.parametrize("seed", range(2))
def test_only_what_is_seen_has_an_effect(
    any_probe: Probe, started: CacheHandle, ids: list[int], past: int, seed: int
) -> None:
    """Random masks: one token changes, and the logits of those that it cannot reach stay."""
    rng = np.random.default_rng([seed, past])
    visible = np.eye(7, dtype=np.bool_) | (rng.random((7, 7)) < 0.18)
    positions = tuple(rng.integers(0, 7, 7).tolist())
    tokens = ids[past : past + 7]
    first, reach = stepped(any_probe, started, Block(tuple(tokens), positions, visible)), reached(visible)
    for changed in range(7):
        other = [t + 1 if i == changed else t for i, t in enumerate(tokens)]
        logits = stepped(any_probe, started, Block(tuple(other), positions, visible))
        blind = ~reach[:, changed]
        any_probe.check(logits[blind], first[blind])
        moved = np.abs(logits - first).max(axis=1)
        assert moved[visible[:, changed]].min() > 0, "a token that is seen has no effect"


def test_tokens_that_are_skipped(any_probe: Probe, started: CacheHandle, ids: list[int], past: int) -> None:
    """A token sees the first of the block and not the one between, whose position stays empty for it."""
    visible = mask("x..", "xx.", "x.x")
    logits = [
        stepped(any_probe, started, Block((ids[past], between, ids[past + 2]), (0, 1, 2), visible))
        for between in (30, 90)
    ]
    any_probe.check(logits[0][[0, 2]], logits[1][[0, 2]])
    assert np.abs(logits[0][1] - logits[1][1]).max() > 0
    near = stepped(any_probe, started, Block((ids[past], 30, ids[past + 2]), (0, 1, 1), visible))
    assert np.abs(near[2] - logits[0][2]).max() > 0, "the position has no effect"


def test_tokens_behind_one_another_that_see_the_past_only(
    any_probe: Probe, started: CacheHandle, ids: list[int], past: int
) -> None:
    """Parallel drafting: each sees the committed text alone, and is what it is in a block of its own."""
    tokens = ids[past : past + 4]
    logits = stepped(any_probe, started, Block(tuple(tokens), (0, 0, 0, 0), np.eye(4, dtype=np.bool_)))
    for token, found in zip(tokens, logits, strict=True):
        any_probe.check(found[None], stepped(any_probe, started, Block.chain([token])))


def test_a_block_that_is_not_kept_leaves_nothing(
    any_probe: Probe, started: CacheHandle, ids: list[int], past: int
) -> None:
    expected = any_probe.feed(started, [ids[past : past + 5]])
    any_probe.model.truncate(started, past)
    stepped(any_probe, started, Block((7, 8, 9), (0, 2, 1), np.ones((3, 3), dtype=np.bool_)))
    any_probe.model.commit(started, ())
    assert started.length == past
    any_probe.check(any_probe.feed(started, [ids[past : past + 5]]), expected)


@pytest.mark.needs("batch", visibility="any")
def test_masked_rows_beside_others(any_probe: Probe, ids: list[int]) -> None:
    handles = [any_probe.opened(ids[:past]) for past in (31, 3, 40, 64)]
    everything = np.ones((4, 4), dtype=np.bool_)
    blocks = [
        Block((5, 6, 7, 8), (0, 1, 2, 3), everything),
        Block.chain(ids[3:12]),
        Block((5, 6, 7), (0, 1, 1), mask("x..", "xx.", "x.x")),
        Block((9, 6, 7, 8), (0, 0, 0, 0), np.eye(4, dtype=np.bool_)),
    ]
    alone = [stepped(any_probe, handle, block) for handle, block in zip(handles, blocks, strict=True)]
    together = any_probe.step(*(Row(handle, block) for handle, block in zip(handles, blocks, strict=True)))
    for found, expected in zip(together, alone, strict=True):
        any_probe.check(found, expected)
    for handle in handles:
        any_probe.model.close(handle)
