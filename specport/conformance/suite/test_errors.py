"""Error behaviour: what makes no sense is refused, and the sequence goes on as if it had not been asked."""

from __future__ import annotations

import numpy as np
import pytest

from specport.conformance.steps import Array, Probe
from specport.core.ports import Block, CacheHandle, Model, Row
from specport.core.tree import TokenTree


def _joined(kept: list[int]) -> str:
    return ",".join(map(str, kept))


@pytest.mark.parametrize("kept", [[1, 0], [0, 0], [3], [-1], [0, 1, 2, 3]], ids=_joined)
def test_commits_of_no_ascending_tokens_are_refused(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, kept: list[int]
) -> None:
    refused(probe, handle, Block.chain(ids[5:8]), kept, ids, whole)


@pytest.mark.needs(gather=False)
@pytest.mark.parametrize("kept", [[1], [0, 2]], ids=_joined)
def test_commits_with_gaps_are_refused(
    probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, kept: list[int]
) -> None:
    """Where the device cannot gather; see test_gather.py for those that can."""
    refused(probe, handle, Block.chain(ids[5:8]), kept, ids, whole)


@pytest.mark.needs("tree", gather=False)
@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 3], [2, 4], [0, 1, 4]], ids=_joined)
def test_commits_across_branches_are_refused(
    probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, kept: list[int]
) -> None:
    tree = TokenTree((ids[5], 7, 8, 9, 10), (-1, 0, 0, 1, 2))
    refused(probe, handle, tree.as_block(), kept, ids, whole)


def refused(
    probe: Probe, handle: CacheHandle, block: Block, kept: list[int], ids: list[int], whole: Array
) -> None:
    """Check that these tokens of a block cannot be kept, and that the sequence goes on without them."""
    probe.feed(handle, [ids[:5]])
    probe.step(Row(handle, block))
    with pytest.raises(ValueError, match=r"\w"):
        probe.model.commit(handle, kept)
    assert handle.length == 5
    probe.check(probe.feed(handle, [ids[5:9]]), whole[5:9])


def _no_tree() -> Block:
    """Three tokens that see one another."""
    return Block((5, 6, 7), (0, 1, 2), np.ones((3, 3), dtype=np.bool_))


def _gap() -> Block:
    """A chain with a position left out: no tree either."""
    return Block((5, 6, 7), (0, 1, 3), np.tri(3, dtype=np.bool_))


@pytest.mark.parametrize(
    ("block", "needed"),
    [
        (TokenTree((5, 6, 7), (-1, 0, 0)).as_block(), {"tree", "any"}),
        (_no_tree(), {"any"}),
        (_gap(), {"any"}),
    ],
    ids=["tree", "mask", "gap"],
)
def test_blocks_that_the_capabilities_rule_out_are_refused(
    any_probe: Probe, ids: list[int], block: Block, needed: set[str]
) -> None:
    """ValueError, since the caller could have known; and none of the step's rows is touched."""
    model = any_probe.model
    if model.capabilities.visibility in needed:
        pytest.skip(f"the device takes it: its visibility is {model.capabilities.visibility!r}")
    one, other = any_probe.opened(ids[:5]), any_probe.opened(ids[:7])
    expected = any_probe.next_logits(one, ids[5])
    rows = [Row(one, Block.chain([5])), Row(other, block)]
    with pytest.raises(ValueError, match=r"\w"):
        model.step(rows if model.capabilities.batch else rows[1:])
    assert (one.length, other.length) == (5, 7)
    any_probe.check(any_probe.next_logits(one, ids[5]), expected)
    for handle in (one, other):
        model.close(handle)


def test_a_row_without_tokens_is_refused(model: Model, handle: CacheHandle) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        model.step([Row(handle, Block.chain([]))])


def test_commits_without_a_step_are_refused(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        model.commit(handle, [0])
    model.step([Row(handle, Block.chain(ids[:3]))])
    model.commit(handle, [0, 1])
    with pytest.raises(ValueError, match=r"\w"):
        model.commit(handle, [0])  # the step's other nodes are gone
    assert handle.length == 2
    probe.check(probe.feed(handle, [ids[2:5]]), whole[2:5])


@pytest.mark.parametrize("length", [6, -1])
def test_truncating_to_what_is_not_there_is_refused(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, length: int
) -> None:
    probe.feed(handle, [ids[:5]])
    with pytest.raises(ValueError, match=r"\w"):
        model.truncate(handle, length)
    assert handle.length == 5
    probe.check(probe.feed(handle, [ids[5:9]]), whole[5:9])


def test_closing_twice_is_harmless(model: Model, probe: Probe, ids: list[int], whole: Array) -> None:
    first = model.open()
    probe.feed(first, [ids[:40]])
    model.close(first)
    second, third = model.open(), model.open()
    probe.feed(second, [ids[:30]])
    model.close(first)  # must not take the second one's place away
    probe.feed(third, [ids[90:130]])
    probe.check(probe.feed(second, [ids[30:35]]), whole[30:35])
    model.close(second)
    model.close(third)


def test_sequences_can_be_closed_with_a_step_pending(model: Model, ids: list[int]) -> None:
    handle = model.open()
    model.step([Row(handle, Block.chain(ids[:5]))])
    model.close(handle)
