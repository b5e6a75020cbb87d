"""Hidden states: a row of each layer's output for every token, which depends on nothing but the text."""

from __future__ import annotations

import numpy as np
import pytest

from specport.conformance.steps import Array, Probe, cut, host
from specport.core.ports import Block, CacheHandle, Row, StepOutput
from specport.core.tree import TokenTree


def states(output: StepOutput) -> dict[int, Array]:
    return {layer: host(array) for layer, array in output.hidden.items()}


@pytest.fixture
def expected(hidden_probe: Probe, ids: list[int]) -> dict[int, Array]:
    """[30, width] of one step."""
    handle = hidden_probe.model.open()
    output = hidden_probe.model.step([Row(handle, Block.chain(ids[:30]), hidden="all")])
    found = states(output)
    hidden_probe.model.close(handle)
    return found


def test_every_row_has_its_states(hidden_probe: Probe, expected: dict[int, Array]) -> None:
    assert set(expected) == {*hidden_probe.model.capabilities.hidden_layers}
    first, last = (expected[layer] for layer in hidden_probe.model.capabilities.hidden_layers)
    assert first.shape == last.shape and len(first) == 30
    assert np.isfinite(first).all() and np.isfinite(last).all()
    assert not np.allclose(first, last)


@pytest.mark.parametrize("sizes", [[1] * 10, [7, 1, 12], [20, 10]], ids=str)
def test_states_do_not_depend_on_the_split(
    hidden_probe: Probe, ids: list[int], expected: dict[int, Array], sizes: list[int]
) -> None:
    model = hidden_probe.model
    handle: CacheHandle = model.open()
    for chunk in cut(ids, sizes):
        start = handle.length
        found = states(model.step([Row(handle, Block.chain(chunk), hidden="all")]))
        for layer, rows in found.items():
            hidden_probe.check(rows, expected[layer][start : start + len(chunk)])
        model.commit(handle, range(len(chunk)))
    model.close(handle)


def test_the_last_row_alone(hidden_probe: Probe, ids: list[int], expected: dict[int, Array]) -> None:
    handle = hidden_probe.model.open()
    found = states(hidden_probe.model.step([Row(handle, Block.chain(ids[:30]), hidden="last")]))
    for layer, rows in found.items():
        hidden_probe.check(rows, expected[layer][29:])
    hidden_probe.model.close(handle)


@pytest.mark.needs("tree")
def test_states_of_a_tree(hidden_probe: Probe, ids: list[int], expected: dict[int, Array]) -> None:
    handle = hidden_probe.model.open()
    tree = TokenTree((ids[0], 5, ids[1], ids[2]), (-1, 0, 0, 2))
    found = states(hidden_probe.model.step([Row(handle, tree.as_block(), hidden="all")]))
    for layer, rows in found.items():
        hidden_probe.check(rows[[0, 2, 3]], expected[layer][:3])
    hidden_probe.model.close(handle)
