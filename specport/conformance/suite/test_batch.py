"""Ragged batches against single sequences: no row's logits depend on its neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from specport.conformance.steps import Array, Probe, host
from specport.core.ports import Block, CacheHandle, Model, Row
from specport.core.tree import TokenTree

pytestmark = pytest.mark.needs("batch")


@pytest.fixture
def handles(model: Model) -> Iterator[list[CacheHandle]]:
    handles = [model.open() for _ in range(4)]
    yield handles
    for handle in handles:
        model.close(handle)


def test_ragged_rows_equal_single_ones(
    model: Model, probe: Probe, handles: list[CacheHandle], ids: list[int], whole: Array
) -> None:
    for widths in ([50, 7, 1, 33], [1, 1, 9, 2], [3, 30, 1, 1], [1, 1, 1, 1]):
        starts = [handle.length for handle in handles]
        rows = [
            Row(handle, Block.chain(ids[start : start + width]))
            for handle, start, width in zip(handles, starts, widths, strict=True)
        ]
        output = model.step(rows)
        assert tuple(output.offsets) == (0, *np.cumsum(widths).tolist())
        for logits, start, width in zip(probe.split(output), starts, widths, strict=True):
            probe.check(logits, whole[start : start + width])
        for handle, width in zip(handles, widths, strict=True):
            model.commit(handle, range(width))


def test_rows_that_want_the_last_logits_beside_others(
    model: Model, probe: Probe, handles: list[CacheHandle], ids: list[int], whole: Array
) -> None:
    rows = [
        Row(handles[0], Block.chain(ids[:40]), logits="last"),
        Row(handles[1], Block.chain(ids[:3])),
        Row(handles[2], Block.chain(ids[:1]), logits="last"),
    ]
    output = model.step(rows)
    assert tuple(output.offsets) == (0, 1, 4, 5)
    probe.check(host(output.logits), whole[[39, 0, 1, 2, 0]])


def test_rows_are_committed_each_in_its_own_way(
    model: Model, probe: Probe, handles: list[CacheHandle], ids: list[int], whole: Array
) -> None:
    for handle in handles:
        probe.feed(handle, [ids[:20]])
    for _ in range(3):
        lengths = [handle.length for handle in handles]
        kept = [0, 1, 3, 5]
        model.step(
            [
                Row(handle, Block.chain([*ids[start : start + k], *([8] * (5 - k))]))
                for handle, start, k in zip(handles, lengths, kept, strict=True)
            ]
        )
        for handle, k in reversed([*zip(handles, kept, strict=True)]):  # in another order than the rows
            model.commit(handle, range(k))
    for handle in handles:
        start = handle.length
        probe.check(probe.feed(handle, [ids[start : start + 3]]), whole[start : start + 3])


def test_a_neighbour_can_be_closed(
    model: Model, probe: Probe, handles: list[CacheHandle], ids: list[int], whole: Array
) -> None:
    model.step([Row(handle, Block.chain(ids[:30])) for handle in handles])
    for handle in handles:
        model.commit(handle, range(30))
    model.close(handles[1])
    model.truncate(handles[2], 10)
    other = model.open()
    probe.feed(other, [ids[100:140]])  # takes the place that was given back
    probe.check(probe.feed(handles[0], [ids[30:35]]), whole[30:35])
    probe.check(probe.feed(handles[2], [ids[10:15]]), whole[10:15])
    model.close(other)


@pytest.mark.needs("tree")
def test_trees_and_chains_share_a_step(
    model: Model, probe: Probe, handles: list[CacheHandle], ids: list[int], whole: Array
) -> None:
    rng = np.random.default_rng(3)
    for past, handle in zip((3, 31, 40, 64), handles, strict=True):
        probe.feed(handle, [ids[:past]])
    for _ in range(3):
        starts = [handle.length for handle in handles]
        grown = [probe.random_tree(rng, ids[start : start + 4]) for start in starts]
        grown[0] = (TokenTree.chain(ids[starts[0] : starts[0] + 4]), [0, 1, 2, 3])
        output = model.step(
            [Row(handle, tree.as_block()) for handle, (tree, _) in zip(handles, grown, strict=True)]
        )
        for logits, start, (_, path) in zip(probe.split(output), starts, grown, strict=True):
            probe.check(logits[path], whole[start : start + 4])
        for i, (handle, (_, path)) in enumerate(zip(handles, grown, strict=True)):
            model.commit(handle, path[: i + 1])
    for handle in handles:
        start = handle.length
        probe.check(probe.feed(handle, [ids[start : start + 3]]), whole[start : start + 3])
