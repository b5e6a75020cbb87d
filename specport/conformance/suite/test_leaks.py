"""Leaks: memory is flat over 200 sequences, and what was closed makes room for what is opened."""

from __future__ import annotations

import gc

import pytest

from specport.core.ports import Block, Model, Row

HALF = 100  # sequences; 200 in all
LENGTH = 96
# The tiny model's cache takes 25 kB a sequence in 16 bits: 2.4 MB for each half, if all of it stayed.
ALLOWED_BYTES = 1_000_000


def use(model: Model, ids: list[int], count: int) -> None:
    for i in range(count):
        handle = model.open()
        model.step([Row(handle, Block.chain(ids[i : i + LENGTH]), logits="last")])
        if i % 4:  # some are closed with a step pending
            model.commit(handle, range(LENGTH))
        if i % 4 == 2:
            model.step([Row(handle, Block.chain(ids[:8]))])
            model.truncate(handle, LENGTH // 2)
        model.close(handle)


def test_memory_is_flat_over_200_sequences(model: Model, ids: list[int]) -> None:
    psutil = pytest.importorskip("psutil", reason="memory is read with psutil, which is not installed")
    process = psutil.Process()

    def resident() -> int:
        gc.collect()
        return int(process.memory_info().rss)

    use(model, ids, HALF // 2)  # what grows once is no leak
    sizes = [resident()]
    for _ in range(2):
        use(model, ids, HALF)
        sizes.append(resident())
    grown = min(sizes[1] - sizes[0], sizes[2] - sizes[1])
    assert grown < ALLOWED_BYTES, f"each {HALF} sequences leave at least {grown / 1e6:.1f} MB behind"


def test_any_number_of_sequences_can_be_opened_and_closed(model: Model, ids: list[int]) -> None:
    """Far more in turn than fit at once; on a device whose memory psutil does not see, this is the check."""
    for i in range(500):
        handle = model.open(model.max_context)
        if i % 50 == 0:
            model.step([Row(handle, Block.chain(ids[:8]), logits="last")])
        model.close(handle)
