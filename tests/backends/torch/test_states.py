"""Decoders with states on torch: steps, roll-back at every length, branches, graphs, sampling law."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes.own_cache import own_cache  # noqa: F401
from support.processes.suites import FEW, run_suite

from specport.conformance.models import tiny
from specport.conformance.models.architectures import configuration
from specport.core.arrays import to_host
from specport.core.ports import Block, Row
from specport.core.tree import TokenTree
from specport.errors import ContextFull, DeviceError, ModelError
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.backends.torch.load import load  # noqa: E402
from specport.backends.torch.slots import states  # noqa: E402
from specport.backends.torch.slots.model import SlotModel  # noqa: E402
from specport.backends.torch.slots.sequence import History  # noqa: E402
from specport.quantize import random_model  # noqa: E402

KINDS = ("qwen3_5_text", "qwen3_next", "lfm2", "olmo_hybrid")
SUITE = ("steps", "rollback", "fork", "batch", "joining", "greedy", "law", "limits", "leaks")
DEVICES = ("torch-cpu", "gaudi-emulated")
# Refused in some versions of transformers: no exact mode, or an operation that graphs cannot capture.
MAYBE = {("qwen3_5_text", "gaudi-emulated"), ("qwen3_next", "torch-cpu"), ("qwen3_next", "gaudi-emulated")}
RNG = np.random.default_rng(1)
IDS = [int(i) for i in RNG.integers(3, 250, 200)]
FAR = 1e-4


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / request.param, request.param)


def saved(folder: Path, kind: str) -> Path:
    try:
        random_model.save(folder, configuration(kind))
    except ModelError as error:
        pytest.skip(str(error))
    tiny.save_tokenizer(folder)
    return folder


def model_on(folder: Path, device: str = "torch-cpu", **options: Any) -> SlotModel:
    files = resolve(str(folder), precision="fp32", weights="huggingface")
    try:
        found = load(files, LoadOptions(load_profile(device), **options)).model
    except (DeviceError, ModelError) as error:
        if (folder.name, device) not in MAYBE:
            raise
        pytest.skip(f"refused: {error}")
    assert isinstance(found, SlotModel)
    return found


def stepping(folder: Path) -> SlotModel:
    """Return a model without exact mode, so that it takes trees, but with the states of exact mode."""
    model = model_on(folder, exact=False)
    model.cache.states.chunked = False
    return model


def step(model: SlotModel, handle: Any, block: Block) -> Any:
    return to_host(model.step([Row(handle, block)]).logits).copy()


def fed(model: SlotModel, tokens: list[int], *ends: int) -> tuple[Any, Any]:
    """Return a sequence that read tokens up to each end in a step of its own, and all logits."""
    handle, parts, start = model.open(), [], 0
    for end in (*ends, len(tokens)):
        parts.append(step(model, handle, Block.chain(tokens[start:end])))
        model.commit(handle, range(end - start))
        start = end
    return handle, np.concatenate(parts)


@pytest.mark.parametrize("device", DEVICES)
def test_states_go_back_to_every_token(folder: Path, device: str) -> None:
    """Steps are committed in part, cut, and gone on from, at random; logits stay those of one reading."""
    model = model_on(folder, device)
    assert model.capabilities.exact and not model.capabilities.gather
    _, want = fed(model, IDS)
    rng = np.random.default_rng(2)
    handle = model.open()
    for _ in range(40):
        start = handle.length
        count = int(rng.integers(1, 12)) if rng.random() < 0.8 else int(rng.integers(12, 60))
        count = min(count, len(IDS) - start)
        kept = int(rng.integers(0, count + 1))
        wrong = [3 + (token + 1) % 240 for token in IDS[start + kept : start + count]]
        found = step(model, handle, Block.chain([*IDS[start : start + kept], *wrong]))
        assert np.array_equal(found[:kept], want[start : start + kept])
        if rng.random() < 0.9:
            model.commit(handle, range(kept))
        if handle.length > 150 or rng.random() < 0.2:
            model.truncate(handle, int(rng.integers(0, handle.length + 1)))


def test_a_text_is_cut_at_every_length(folder: Path) -> None:
    model = model_on(folder)
    _, want = fed(model, IDS[:60])
    for length in range(0, 43, 3):
        handle, _ = fed(model, IDS[:42], 20, 21, 26)
        fork = model.fork(handle, length)
        model.truncate(handle, length)
        for each in (handle, fork):
            assert np.array_equal(step(model, each, Block.chain(IDS[length:60])), want[length:]), length
            model.close(each)


def test_branches_have_states_of_their_own(folder: Path) -> None:
    model = stepping(folder)
    assert model.capabilities.visibility == "tree"
    _, want = fed(model, IDS[:60])
    tree = TokenTree((5, IDS[30], 6, IDS[31], 7, IDS[32]), (-1, -1, 1, 1, 3, 3)).as_block()
    for path in ([1], [1, 3], [1, 3, 5], []):
        handle, _ = fed(model, IDS[:30])
        found = step(model, handle, tree)
        assert np.abs(found[[1, 3, 5]] - want[30:33]).max() < FAR
        model.commit(handle, path)
        start = handle.length
        assert np.abs(step(model, handle, Block.chain(IDS[start:60])) - want[start:]).max() < FAR
    handle, _ = fed(model, IDS[:30])
    step(model, handle, tree)
    with pytest.raises(ValueError, match="no path"):
        model.commit(handle, [0, 1])
    own = np.ones((3, 3), dtype=np.bool_)
    with pytest.raises(ValueError, match="no tree"):
        model.step([Row(handle, Block((5, 6, 7), (0, 1, 2), own))])


def test_sequences_do_not_touch_each_other(folder: Path) -> None:
    model = stepping(folder)
    _, want = fed(model, IDS[:80])
    handles = [fed(model, IDS[:end])[0] for end in (10, 25, 40)]
    rows = [
        Row(h, Block.chain(IDS[h.length : h.length + n])) for h, n in zip(handles, (2, 5, 20), strict=True)
    ]
    output = model.step(rows)  # the last one is read in pieces
    step(model, fed(model, IDS[:3])[0], Block.chain([7]))  # another sequence steps before the commit
    for i, (row, kept) in enumerate(zip(rows, (1, 5, 20), strict=True)):
        start = row.handle.length
        model.commit(row.handle, range(kept))
        found = step(model, row.handle, Block.chain(IDS[start + kept : start + kept + 4]))
        assert np.abs(found - want[start + kept : start + kept + 4]).max() < FAR, i
    assert output.offsets == (0, 2, 7, 27)


def test_without_exact_mode_long_pieces_are_read_in_chunks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, fast = model_on(folder), model_on(folder, exact=False)
    assert fast.cache.states.chunked and not exact.cache.states.chunked
    _, want = fed(exact, IDS[:90])
    calls: list[int] = []
    recur = states.StateStore.recur
    monkeypatch.setattr(
        states.StateStore, "recur", lambda *arguments: (calls.append(1), recur(*arguments))[1]
    )
    handle, found = fed(fast, IDS[:80])
    assert not calls  # one piece
    assert np.abs(found - want[:80]).max() < 100 * FAR  # transformers' chunks round far more coarsely
    fast.commit(handle, [])
    assert np.abs(step(fast, handle, Block.chain(IDS[80:90])) - want[80:]).max() < 100 * FAR


def test_states_count_as_memory(folder: Path) -> None:
    model = model_on(folder, exact=False)
    shape = model.cache.shape
    assert shape.state_bytes == states.ENTRIES * sum(state.nbytes for state in shape.states) > 0
    one = shape.nbytes(1, 512) + shape.state_bytes
    small = model_on(folder, exact=False, cache_bytes=2 * one)
    small.open(100)
    small.open(100)
    total = [*small.cache.keys, *small.cache.values, *small.cache.states.tensors]
    assert one < sum(tensor.nbytes for tensor in total) <= 2 * one
    with pytest.raises(ContextFull, match="key/value cache"):
        small.open(100)


def test_the_conformance_suite_passes_a_hybrid(tmp_path: Path) -> None:
    """The suite's own tests of roll-back and of the law of sampled texts, among others."""
    folder = saved(tmp_path / "model", "lfm2")
    modules = [f"specport.conformance.suite.test_{check}" for check in SUITE]
    arguments = ("--specport-device", "torch-cpu", "--specport-model", str(folder), *FEW)
    code, output, results = run_suite(tmp_path, os.environ, *arguments, tests=modules)
    assert code == 0, output
    assert {result["check"] for result in results.values() if result["outcome"] == "passed"} == {*SUITE}


def test_entries_are_shared_out() -> None:
    history = History()
    history.at |= {10: 1, 11: 2, 12: 3}
    history.marks = [10]
    first = history.take(states.WIDEST, 12)
    assert len({*first}) == states.WIDEST and not {*first} & {states.EMPTY, states.UNREAD, 1, 2, 3}
    history.at |= {13 + i: entry for i, entry in enumerate(first)}
    history.take(2, 28)  # the oldest states go, but for the mark
    assert history.nearest(12) == 10 and history.nearest(13) == 13 and history.nearest(9) == 0
    history.cut(20)
    assert history.nearest(28) == 20 and history.marks == [10]
    history.cut(9)
    assert history.at == {0: 0} and history.marks == []
