"""Rollback: after any pattern of acceptance the cache holds what was kept, and nothing else."""

from __future__ import annotations

import pytest

from specport.conformance.steps import Array, Probe
from specport.core.ports import Block, CacheHandle, Model, Row

DRAFTED = 5


@pytest.mark.parametrize("kept", range(DRAFTED + 1))
@pytest.mark.parametrize("past", [0, 1, 30, 63])
def test_k_of_n_tokens_kept(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, past: int, kept: int
) -> None:
    if past:
        probe.feed(handle, [ids[:past]])
    wrong = [token + 1 for token in range(3, 3 + DRAFTED)]
    for start in (past, past + kept):  # twice: what the first round left must not leak into the second
        block = Block.chain([*ids[start : start + kept], *wrong[kept:]])
        (logits,) = probe.step(Row(handle, block))
        probe.check(logits[:kept], whole[start : start + kept])
        model.commit(handle, range(kept))
        assert handle.length == start + kept
    end = handle.length
    probe.check(probe.feed(handle, [ids[end : end + 4]]), whole[end : end + 4])


def test_every_pattern_in_a_row(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array
) -> None:
    """As a generation does it: the number kept rises and falls from round to round."""
    for kept in (5, 0, 1, 4, 2, 3, 0, 0, 5, 5, 1):
        start = handle.length
        block = Block.chain([*ids[start : start + kept], *([9] * (DRAFTED - kept))])
        (logits,) = probe.step(Row(handle, block))
        probe.check(logits[:kept], whole[start : start + kept])
        model.commit(handle, range(kept))
    end = handle.length
    probe.check(probe.feed(handle, [ids[end : end + 4]]), whole[end : end + 4])


@pytest.mark.parametrize("length", [119, 96, 64, 63, 33, 32, 31, 1, 0])
def test_truncated_sequences_go_on_from_there(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, length: int
) -> None:
    probe.feed(handle, [ids[:60], ids[60:120]])
    model.truncate(handle, length)
    assert handle.length == length
    probe.check(probe.feed(handle, [ids[length : length + 9]]), whole[length : length + 9])


def test_truncating_forgets_the_step(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array
) -> None:
    probe.feed(handle, [ids[:10]])
    model.step([Row(handle, Block.chain([5, 6, 7]))])
    model.truncate(handle, 10)
    with pytest.raises(ValueError, match=r"\w"):
        model.commit(handle, [0])
    probe.check(probe.feed(handle, [ids[10:14]]), whole[10:14])


def test_a_step_that_is_never_committed_leaves_nothing(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array
) -> None:
    probe.feed(handle, [ids[:40]])
    for width in (1, 7, 3):
        model.step([Row(handle, Block.chain(range(4, 4 + width)))])
    probe.check(probe.feed(handle, [ids[40:50]]), whole[40:50])
