"""Writes into the cache of slots: processors and accelerators have ways of their own."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.backends.torch.slots.cache import assign, scatter  # noqa: E402


def test_both_ways_write_the_same_rows() -> None:
    torch.manual_seed(1)
    index = torch.stack([torch.randperm(7)[:4] for _ in range(3)])
    new = torch.randn(3, 2, 4, 5)
    found = []
    for write in (assign, scatter):
        whole = torch.zeros(6, 2, 9, 5)
        write(whole[2:5], index, new)  # slots of a larger cache
        found.append(whole)
    for slot in range(3):
        for i, row in enumerate(index[slot]):
            assert torch.equal(found[0][2 + slot, :, row], new[slot, :, i])
    assert torch.equal(*found) and torch.count_nonzero(found[0]) == new.numel()
