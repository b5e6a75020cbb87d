"""Trees against chains: every path of a tree gives the logits that it gives as a chain of its own."""

from __future__ import annotations

import numpy as np
import pytest

from specport.conformance.steps import Array, Probe
from specport.core.ports import Block, CacheHandle, Model, Row
from specport.core.tree import TokenTree

pytestmark = pytest.mark.needs("tree")


@pytest.mark.parametrize("past", [0, 5, 31, 32, 33, 100])
def test_every_path_equals_its_chain(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], past: int
) -> None:
    if past:
        probe.feed(handle, [ids[:past]])
    tree, _ = probe.random_tree(np.random.default_rng(past), ids[past : past + 4], most=12)
    (logits,) = probe.step(Row(handle, tree.as_block()))
    for leaf in {*range(len(tree))} - {*tree.parents}:
        path = tree.path(leaf)
        (chain,) = probe.step(Row(handle, Block.chain([tree.tokens[node] for node in path])))
        probe.check(logits[path], chain)


@pytest.mark.parametrize("past", [5, 31, 33, 64])
def test_any_path_can_be_committed(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, past: int
) -> None:
    rng = np.random.default_rng(past)
    probe.feed(handle, [ids[:past]])
    while handle.length < past + 30:
        start = handle.length
        tree, path = probe.random_tree(rng, ids[start : start + 5])
        (logits,) = probe.step(Row(handle, tree.as_block()))
        probe.check(logits[path], whole[start : start + 5])
        kept = path[: int(rng.integers(0, 6))]
        model.commit(handle, kept)
        assert handle.length == start + len(kept)
    start = handle.length  # what was committed is what a chain would have left
    probe.check(probe.feed(handle, [ids[start : start + 9]]), whole[start : start + 9])


def test_siblings_with_the_same_token_have_the_same_logits(
    probe: Probe, handle: CacheHandle, ids: list[int]
) -> None:
    """A drawn duplicate stays in its tree, or sampling would lose its law."""
    probe.feed(handle, [ids[:9]])
    tree = TokenTree((ids[9], 7, 7, 8, 8), (-1, 0, 0, 1, 2))
    (logits,) = probe.step(Row(handle, tree.as_block()))
    probe.check(logits[[2, 4]], logits[[1, 3]])


def test_the_last_node_is_scored_alone(probe: Probe, handle: CacheHandle, ids: list[int]) -> None:
    probe.feed(handle, [ids[:9]])
    tree = TokenTree((ids[9], 7, 8, 11), (-1, 0, 0, 1))
    (everything,) = probe.step(Row(handle, tree.as_block()))
    (last,) = probe.step(Row(handle, tree.as_block(), logits="last"))
    probe.check(last, everything[3:])


def test_branches_do_not_see_each_other(probe: Probe, handle: CacheHandle, ids: list[int]) -> None:
    """One branch's tokens change; the other branch's logits must not."""
    probe.feed(handle, [ids[:20]])
    logits = [
        probe.step(Row(handle, TokenTree((ids[20], other, 12, other, 14), (-1, 0, 0, 1, 2)).as_block()))[0]
        for other in (30, 90)
    ]
    probe.check(logits[0][[0, 2, 4]], logits[1][[0, 2, 4]])
    assert np.abs(logits[0][1] - logits[1][1]).max() > 0
