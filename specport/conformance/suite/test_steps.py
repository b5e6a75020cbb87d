"""Steps and commits: a step scores and keeps nothing, a commit keeps, and no split changes a logit."""

from __future__ import annotations

import numpy as np
import pytest

from specport.conformance.steps import Array, Probe, cut, host
from specport.core.ports import Block, CacheHandle, Model, Row

CHAIN = Block.chain


def test_a_step_commits_nothing(model: Model, handle: CacheHandle, ids: list[int]) -> None:
    assert handle.length == 0
    model.step([Row(handle, CHAIN(ids[:5]))])
    assert handle.length == 0
    model.commit(handle, range(5))
    assert handle.length == 5
    model.step([Row(handle, CHAIN(ids[5:8]))])
    assert handle.length == 5
    model.commit(handle, ())
    assert handle.length == 5


def test_all_logits_have_a_row_a_node(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array
) -> None:
    output = model.step([Row(handle, CHAIN(ids[:7]))])
    assert output.logits.shape == (7, model.vocab_size)
    assert tuple(output.offsets) == (0, 7)
    assert output.seconds >= 0
    logits = host(output.logits)
    assert np.isfinite(logits).all() and logits.std(axis=1).min() > 0
    probe.check(logits, whole[:7])


@pytest.mark.parametrize("n", [1, 2, 40, 150])
def test_last_logits_are_the_last_of_all(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, n: int
) -> None:
    # With fixed shapes a prompt may be read by other kernels than a round of decoding, which round otherwise
    # (OpenVINO with AMX): plain and speculative decoding read it alike.
    check = probe.check_close if model.capabilities.buckets else probe.check
    output = model.step([Row(handle, CHAIN(ids[:n]), logits="last")])
    assert output.logits.shape == (1, model.vocab_size)
    assert tuple(output.offsets) == (0, 1)
    check(host(output.logits), whole[n - 1 : n])
    model.commit(handle, range(n))
    check(probe.feed(handle, [ids[n : n + 3]]), whole[n : n + 3])


@pytest.mark.parametrize(
    "sizes",
    [[1] * 20, [2] * 16, [3] * 12, [16] * 5, [64] * 3, [31, 1, 1, 32, 33, 7, 1], [150, 1, 1, 4]],
    ids=lambda sizes: f"{sizes[0]}x{len(sizes)}",
)
def test_logits_do_not_depend_on_the_split(
    probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, sizes: list[int]
) -> None:
    logits = probe.feed(handle, cut(ids, sizes))
    probe.check(logits, whole[: len(logits)])


def test_logits_depend_on_the_order_of_the_text(probe: Probe, handle: CacheHandle, ids: list[int]) -> None:
    """Or nothing that is compared here would tell anything: what came before must matter."""
    straight = probe.feed(handle, [ids[:20]])[-1]
    probe.model.truncate(handle, 0)
    swapped = probe.feed(handle, [[ids[1], ids[0], *ids[2:20]]])[-1]
    assert np.abs(straight - swapped).max() > 0


def test_a_reserved_capacity_changes_nothing(
    model: Model, probe: Probe, ids: list[int], whole: Array
) -> None:
    for capacity in (1, 33, 150):
        handle = model.open(capacity)
        assert handle.length == 0
        probe.check(probe.feed(handle, [ids[:30], ids[30:60]]), whole[:60])
        model.close(handle)
