"""Error behaviour: what makes no sense is refused, and the sequence goes on as if it had not been asked."""

from __future__ import annotations

import pytest

from specport.conformance.steps import Array, Probe
from specport.core.ports import CacheHandle, Model, Row
from specport.core.tree import TokenTree


def _joined(kept: list[int]) -> str:
    return ",".join(map(str, kept))


@pytest.mark.parametrize("kept", [[1], [0, 2], [1, 0], [0, 0], [3], [-1], [0, 1, 2, 3]], ids=_joined)
def test_commits_that_are_no_path_are_refused(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, kept: list[int]
) -> None:
    probe.feed(handle, [ids[:5]])
    model.step([Row(handle, TokenTree.chain(ids[5:8]))])
    with pytest.raises(ValueError, match=r"\w"):
        model.commit(handle, kept)
    assert handle.length == 5
    probe.check(probe.feed(handle, [ids[5:9]]), whole[5:9])


@pytest.mark.needs("tree")
@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 3], [2, 4], [0, 1, 4]], ids=_joined)
def test_commits_across_branches_are_refused(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, kept: list[int]
) -> None:
    probe.feed(handle, [ids[:5]])
    model.step([Row(handle, TokenTree((ids[5], 7, 8, 9, 10), (-1, 0, 0, 1, 2)))])
    with pytest.raises(ValueError, match=r"\w"):
        model.commit(handle, kept)
    assert handle.length == 5
    probe.check(probe.feed(handle, [ids[5:9]]), whole[5:9])


def test_commits_without_a_step_are_refused(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        model.commit(handle, [0])
    model.step([Row(handle, TokenTree.chain(ids[:3]))])
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
    model.step([Row(handle, TokenTree.chain(ids[:5]))])
    model.close(handle)
