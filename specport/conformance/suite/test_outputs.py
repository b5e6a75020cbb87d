"""Outputs: each row of a step asks for logits and hidden states independently, and gets what it asked for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from specport.conformance.steps import Array, Probe, host
from specport.core.ports import Block, CacheHandle, Model, Row, StepOutput, Wanted

WANTED: tuple[Wanted, ...] = ("all", "last", "none")
PAIRS = [*product(WANTED, WANTED)]  # (logits, hidden)
WIDTH = 6


@pytest.fixture(scope="module")
def states(hidden_probe: Probe, ids: list[int]) -> dict[int, Array]:
    """Layer -> [100, width] hidden states of the first tokens in one step."""
    handle = hidden_probe.model.open()
    output = hidden_probe.model.step([Row(handle, Block.chain(ids[:100]), hidden="all")])
    found = {layer: host(array) for layer, array in output.hidden.items()}
    hidden_probe.model.close(handle)
    return found


@pytest.fixture
def handles(hidden_probe: Probe, ids: list[int]) -> Iterator[list[CacheHandle]]:
    """One sequence for each of PAIRS, each of another length."""
    handles = [hidden_probe.opened(ids[: 3 * i]) for i in range(len(PAIRS))]
    yield handles
    for handle in handles:
        hidden_probe.model.close(handle)


def rows_of(wanted: Wanted, start: int, width: int = WIDTH) -> list[int]:
    """Return the positions that a row of `width` tokens from `start` on owns."""
    everything = [*range(start, start + width)]
    return {"all": everything, "last": everything[-1:], "none": []}[wanted]


def check(probe: Probe, output: StepOutput, row: int, found: dict[int, Array], places: list[int]) -> None:
    """Check a row's hidden states: as many as it asked for, and those of its own tokens."""
    own = output.hidden_of(row)
    if not places:
        assert all(not len(states) for states in own.values())
        return
    assert set(own) == {*probe.model.capabilities.hidden_layers}
    for layer, states in own.items():
        probe.check(host(states), found[layer][places])


@pytest.mark.parametrize("n", [1, 2, 40, 150])
def test_rows_without_logits_are_read_all_the_same(
    model: Model, probe: Probe, handle: CacheHandle, ids: list[int], whole: Array, n: int
) -> None:
    check = probe.check_close if model.capabilities.buckets else probe.check  # see test_steps.py
    output = model.step([Row(handle, Block.chain(ids[:n]), logits="none")])
    assert output.logits.shape == (0, model.vocab_size) and tuple(output.offsets) == (0, 0)
    assert not output.refused and not output.hidden_of(0)
    model.commit(handle, range(n))
    assert handle.length == n
    check(probe.feed(handle, [ids[n : n + 3]]), whole[n : n + 3])


@pytest.mark.needs("batch")
def test_rows_without_logits_beside_others(model: Model, probe: Probe, ids: list[int], whole: Array) -> None:
    handles = [probe.opened(ids[: 5 * i]) for i in range(4)]
    wanted: tuple[Wanted, ...] = ("none", "all", "last", "none")
    rows = [
        Row(handle, Block.chain(ids[handle.length : handle.length + WIDTH]), logits=logits)
        for handle, logits in zip(handles, wanted, strict=True)
    ]
    output = model.step(rows)
    assert tuple(output.offsets) == (0, 0, WIDTH, WIDTH + 1, WIDTH + 1)
    probe.check(host(output.logits), whole[[*rows_of("all", 5), *rows_of("last", 10)]])
    for handle in handles:
        model.commit(handle, range(WIDTH))
        start = handle.length
        probe.check(probe.feed(handle, [ids[start : start + 2]]), whole[start : start + 2])
        model.close(handle)


@pytest.mark.parametrize(("logits", "hidden"), PAIRS)
def test_one_row_gets_what_it_asks_for(
    hidden_probe: Probe,
    ids: list[int],
    whole: Array,
    states: dict[int, Array],
    logits: Wanted,
    hidden: Wanted,
) -> None:
    model, past = hidden_probe.model, 17
    handle = hidden_probe.opened(ids[:past])
    block = Block.chain(ids[past : past + WIDTH])
    output = model.step([Row(handle, block, logits=logits, hidden=hidden)])
    places = rows_of(logits, past)
    assert output.logits.shape == (len(places), model.vocab_size)
    # Asked for its layers, the model may have been compiled otherwise than the one without.
    hidden_probe.check_close(host(output.logits), whole[places])
    check(hidden_probe, output, 0, states, rows_of(hidden, past))
    model.close(handle)


@pytest.mark.parametrize("turn", range(3))
def test_rows_of_a_step_ask_each_for_its_own(
    hidden_probe: Probe,
    handles: list[CacheHandle],
    ids: list[int],
    whole: Array,
    states: dict[int, Array],
    turn: int,
) -> None:
    """All nine combinations in one step, so that the offsets of logits and of states run apart."""
    model = hidden_probe.model
    if not model.capabilities.batch:
        pytest.skip("the device has no capability 'batch'")
    pairs = [*PAIRS[4 * turn :], *PAIRS[: 4 * turn]]
    rows = [
        Row(handle, Block.chain(ids[handle.length : handle.length + WIDTH]), logits, hidden)
        for handle, (logits, hidden) in zip(handles, pairs, strict=True)
    ]
    output = model.step(rows)
    for i, (handle, (logits, hidden)) in enumerate(zip(handles, pairs, strict=True)):
        hidden_probe.check_close(host(output.logits_of(i)), whole[rows_of(logits, handle.length)])
        check(hidden_probe, output, i, states, rows_of(hidden, handle.length))


def test_states_are_those_of_this_step(hidden_probe: Probe, ids: list[int], states: dict[int, Array]) -> None:
    """Not of an earlier one: between them stands a step that asked for none."""
    model = hidden_probe.model
    handle = model.open()
    for start in (0, WIDTH, 2 * WIDTH):
        block = Block.chain(ids[start : start + WIDTH])
        silent = model.step([Row(handle, block)])
        assert not any(len(found) for found in silent.hidden_of(0).values())
        output = model.step([Row(handle, block, logits="none", hidden="all")])
        assert output.logits.shape == (0, model.vocab_size)
        check(hidden_probe, output, 0, states, rows_of("all", start))
        model.commit(handle, range(WIDTH))
    model.close(handle)


def test_refused_rows_own_nothing(hidden_probe: Probe, ids: list[int], states: dict[int, Array]) -> None:
    model = hidden_probe.model
    full, other = hidden_probe.opened(ids[: model.max_context - 1]), model.open()
    refused = Row(full, Block.chain([5, 6]), hidden="all")
    output = model.step([refused])
    assert dict(output.refused) == {0: "context"}
    assert not any(len(found) for found in output.hidden_of(0).values())
    if model.capabilities.batch:
        output = model.step([refused, Row(other, Block.chain(ids[:WIDTH]), "last", "all")])
        assert not len(output.logits_of(0)) and len(output.logits_of(1)) == 1
        check(hidden_probe, output, 0, states, [])
        check(hidden_probe, output, 1, states, [*range(WIDTH)])
    for handle in (full, other):
        model.close(handle)


@pytest.mark.needs("tree")
def test_the_last_token_of_a_tree(hidden_probe: Probe, ids: list[int]) -> None:
    """It is the block's last token, wherever it hangs."""
    model = hidden_probe.model
    handle = hidden_probe.opened(ids[:9])
    visible = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=np.bool_)
    block = Block((ids[9], 5, 7), (0, 1, 1), visible)
    output = model.step([Row(handle, block, hidden="all")])
    logits, states = host(output.logits), {n: host(a) for n, a in output.hidden.items()}
    last = model.step([Row(handle, block, "last", "last")])
    hidden_probe.check(host(last.logits), logits[2:])
    check(hidden_probe, last, 0, states, [2])
    model.close(handle)
