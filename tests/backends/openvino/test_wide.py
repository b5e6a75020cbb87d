"""Steps that are too wide for one call of the runtime, where wide ones round otherwise than narrow ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from specport.core.block import Block
from specport.core.ports import Row
from specport.core.tree import TokenTree
from specport.runtime import numerics
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions

pytest.importorskip("openvino")

from specport.backends.openvino.load import load
from specport.backends.openvino.paged.model import PagedModel

pytestmark = pytest.mark.real_model

IDS = [int(i) for i in np.random.default_rng(7).integers(0, 49000, 200)]
LAYER = 5


@pytest.fixture(scope="module")
def early_model() -> PagedModel:
    return loaded(exit_layer=10)


@pytest.fixture
def early(early_model: PagedModel) -> Iterator[PagedModel]:
    """A model with an early exit, whose `widest` a test may change."""
    widest = early_model.widest
    yield early_model
    early_model.widest = widest


def loaded(**options: Any) -> PagedModel:
    model = load(resolve(), LoadOptions(load_profile("xeon"), max_context=512, **options)).model
    assert isinstance(model, PagedModel)
    return model


def feed(model: PagedModel, sizes: Sequence[int]) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Logits of IDS stepped in these sizes, and the hidden states where the model gives them."""
    handle = model.open()
    logits, hidden = [], []
    for size in sizes:
        start = handle.length
        row = Row(handle, Block.chain(IDS[start : start + size]), hidden="all")
        output = model.step([row])
        logits.append(output.logits.copy())
        hidden += [states.copy() for states in output.hidden.values()]
        model.commit(handle, range(size))
    model.close(handle)
    assert model.cache.num_used_blocks == 0
    return np.concatenate(logits), hidden


@pytest.mark.parametrize("gives", ["hidden states", "an early exit"])
def test_a_step_in_parts_gives_the_bits_of_narrow_steps(gives: str, request: pytest.FixtureRequest) -> None:
    model: PagedModel = (
        loaded(hidden_layers=(LAYER,)) if gives == "hidden states" else request.getfixturevalue("early")
    )
    narrow, states = feed(model, [20] * 10)
    model.widest = 24
    for sizes in ([200], [25, 49, 24, 1, 101]):
        logits, hidden = feed(model, sizes)
        assert np.array_equal(logits, narrow)
        if states:
            assert np.array_equal(np.concatenate(hidden), np.concatenate(states))
    # A tree with paths of 40 and 30 tokens, a prompt of which the last logits are wanted, a lone token.
    first, second, third = model.open(), model.open(), model.open()
    for handle, count in ((first, 30), (third, 11)):
        model.step([Row(handle, Block.chain(IDS[:count]), logits="last")])
        model.commit(handle, range(count))
    tree = TokenTree((*IDS[30:70], *IDS[50:70]), (-1, *range(39), 9, *range(40, 59)))
    rows = [
        Row(first, tree.as_block()),
        Row(second, Block.chain(IDS[:150]), logits="last"),
        Row(third, Block.chain(IDS[11:12])),
    ]
    output = model.step(rows)
    assert output.offsets == (0, 60, 61, 62)
    assert np.array_equal(output.logits[:40], narrow[30:70])
    assert np.array_equal(output.logits[60:], narrow[[149, 11]])
    # Hidden states of what is scored nowhere, in parts like the logits.
    rows = [
        Row(first, Block.chain(IDS[30:90]), logits="none", hidden="all"),
        Row(third, Block.chain(IDS[11:60]), hidden="last"),
    ]
    output = model.step(rows)
    assert output.offsets == (0, 0, 49)
    assert np.array_equal(output.logits, narrow[11:60])
    if states:
        assert output.hidden_offsets == (0, 60, 61)
        assert np.array_equal(output.hidden[LAYER], np.concatenate(states)[[*range(30, 90), 59]])
    assert not len(model.step([replace(row, logits="none", hidden="none") for row in rows]).logits)
    model.step([Row(first, tree.as_block())])
    model.commit(first, range(10))
    again = model.step([Row(first, Block.chain(IDS[40:43]))]).logits
    assert np.array_equal(again, narrow[40:43])
    for handle in (first, second, third):
        model.close(handle)


def test_many_rows_are_drafted_in_parts(early: PagedModel) -> None:
    model = early
    handles = [model.open() for _ in range(5)]
    for handle in handles:
        model.step([Row(handle, Block.chain(IDS[:30]), logits="last")])
        model.commit(handle, range(30))
    alone = [model.draft([Row(h, Block.chain(IDS[30:33]))]).logits.copy() for h in handles]
    wanted = model.step([Row(handles[0], Block.chain(IDS[30:35]))]).logits.copy()
    for handle in handles:
        model.truncate(handle, 30)
    model.widest = 8
    output = model.draft([Row(h, Block.chain(IDS[30:33])) for h in handles])
    assert output.offsets == (0, 3, 6, 9, 12, 15)
    assert np.array_equal(output.logits, np.concatenate(alone))
    logits = model.step([Row(h, Block.chain(IDS[30:35])) for h in handles]).logits
    assert np.array_equal(logits, np.concatenate([wanted] * 5))
    for handle in handles:
        model.close(handle)


@pytest.mark.parametrize("wide", [True, False])
def test_whether_wide_steps_are_alike_is_asked(
    wide: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(numerics, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(numerics, "is_wide", lambda model: wide)
    monkeypatch.setattr(numerics, "rounds_as_narrow", lambda model, width: width <= 64)
    assert loaded().widest == (0 if wide else 64)
    assert loaded(exact=False).widest == 0


def test_the_check_of_wide_steps_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded()
    assert numerics.is_wide(model)
    step = model.step

    def worse(rows: Sequence[Row]) -> Any:
        output = step(rows)
        if sum(len(row.block) for row in rows) > 90:
            output.logits[0, 0] = np.nextafter(output.logits[0, 0], np.float32(np.inf))
        return output

    monkeypatch.setattr(model, "step", worse)
    assert not numerics.is_wide(model)


def test_where_narrow_steps_round_differently_more_rows_are_computed(
    monkeypatch: pytest.MonkeyPatch, early: PagedModel
) -> None:
    """As for Qwen2.5-Coder-0.5B in INT4 on a processor with AVX2: steps of up to 4 rows."""
    usual = loaded()
    asked = []
    monkeypatch.setattr(numerics, "checked", lambda model, key, **_: asked.append(key) or "rows" in key)
    found = load(resolve(), LoadOptions(load_profile("xeon"), max_context=512))
    assert len(asked) == 3 and asked[2] == f"{asked[0]}-rows-5" and found.key.endswith("-rows-5")
    assert any("5 rows" in note for note in found.notes)
    model = found.model
    assert isinstance(model, PagedModel)
    sizes = [1, 1, 2, 3, 1, 4, 8, 30, 1]
    assert np.array_equal(feed(model, sizes)[0], feed(usual, sizes)[0])
    assert not early.widen(5)  # its graph has no rows of attention apart from the others
