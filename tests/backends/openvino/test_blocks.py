"""Blocks of the key/value cache: sharing, growth, refusals, and what a failed step gives back."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from specport.core.block import Block
from specport.core.ports import Row
from specport.core.tree import TokenTree
from specport.errors import ContextFull, InvalidInput
from specport.models.source import ModelFiles
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions

ov = pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from specport.backends.openvino.load import load  # noqa: E402
from specport.backends.openvino.paged import batch, pool, segments  # noqa: E402
from specport.backends.openvino.paged.cache import BLOCK_SIZE, BlockCache  # noqa: E402
from specport.backends.openvino.paged.early_exit import ExitModel  # noqa: E402
from specport.backends.openvino.paged.model import PagedModel  # noqa: E402
from specport.backends.openvino.request import Request  # noqa: E402
from support.processes.conversions import converting_here  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 200)]
FOUR_PATHS = TokenTree((5, 6, 7, 8, 9), (-1, 0, 0, 0, 0)).as_block()
BLOCKS = 4


class Port:
    """A cache tensor of a graph, as the cache sees it: [blocks, 2, BLOCK_SIZE, width]."""

    def __init__(self, name: str, width: int) -> None:
        self.names, self.width = {name}, width

    def get_partial_shape(self) -> Any:
        return [SimpleNamespace(get_length=lambda n=n: n) for n in (0, 2, BLOCK_SIZE, self.width)]

    def get_element_type(self) -> Any:
        return ov.Type.f32


class Bound:
    """A request that remembers what is bound to its three cache tensors."""

    def __init__(self) -> None:
        ports = [Port("key_cache.0", 4), Port("value_cache.0", 8), Port("key_cache.1", 4)]
        self.compiled = SimpleNamespace(inputs=ports)
        self.tensors: dict[str, Any] = {}

    def bind(self, port: Port, tensor: Any) -> None:
        self.tensors[next(iter(port.names))] = tensor

    def block(self, number: int) -> np.ndarray:
        return np.concatenate([t.data[number].ravel() for t in self.tensors.values()])

    @property
    def sizes(self) -> set[int]:
        return {tensor.shape[0] for tensor in self.tensors.values()}


def filled(request: Bound, blocks: BlockCache, num_tokens: int, value: float) -> list[int]:
    """A table whose blocks are full of `value`."""
    table: list[int] = []
    blocks.extend(table, num_tokens)
    for tensor in request.tensors.values():
        tensor.data[table] = value
    return table


def new_cache(max_blocks: int, max_bytes: int | None = None) -> tuple[Bound, BlockCache]:
    request = Bound()
    return request, BlockCache([request], max_blocks, max_bytes)  # type: ignore[list-item]


def test_tables_share_full_blocks_and_copy_the_part_filled_one() -> None:
    request, blocks = new_cache(100)
    table = filled(request, blocks, 3 * BLOCK_SIZE, 1)
    fork = blocks.fork(table, 2 * BLOCK_SIZE + 5)
    assert fork[:2] == table[:2] and fork[2] != table[2] and blocks.num_used_blocks == 4
    assert np.array_equal(request.block(fork[2]), request.block(table[2]))
    # Truncated into a shared block and written to: a copy, whoever writes first.
    blocks.release(fork, BLOCK_SIZE + 3)
    assert (fork, blocks.num_used_blocks) == (table[:2], 3)
    blocks.extend(fork, BLOCK_SIZE + 4, BLOCK_SIZE + 3)
    assert fork[0] == table[0] and fork[1] != table[1] and blocks.num_used_blocks == 4
    assert np.array_equal(request.block(fork[1]), request.block(table[1]))
    before = [*table]
    blocks.extend(table, 3 * BLOCK_SIZE, BLOCK_SIZE + 3)  # nobody shares it any more
    assert table == before
    blocks.release(table)
    assert blocks.num_used_blocks == 2
    blocks.release(fork)
    assert blocks.num_used_blocks == 0


def test_room_counts_the_copy_that_writing_would_need() -> None:
    _, blocks = new_cache(4)
    table: list[int] = []
    blocks.extend(table, BLOCK_SIZE)
    fork = blocks.fork(table, BLOCK_SIZE)
    assert blocks.room(fork, BLOCK_SIZE) == 3 * BLOCK_SIZE
    assert blocks.room(fork, 10) == 3 * BLOCK_SIZE - 10  # one of the three free blocks is for the copy
    other: list[int] = []
    blocks.extend(other, 3 * BLOCK_SIZE)
    assert blocks.room(fork, 10) == 0
    with pytest.raises(ContextFull):
        blocks.extend(fork, 12, 10)
    assert fork == table
    blocks.release(table)
    assert blocks.room(fork, 10) == BLOCK_SIZE - 10


@pytest.mark.parametrize("num_blocks", [1, 3, 40, 1000])
def test_growth_never_passes_its_bytes_even_while_it_copies(
    num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_cache(1)[1].bytes_for(1)
    held: list[np.ndarray] = []
    most, real = [0], pool.aligned

    def noted(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Any:
        array = real(shape, dtype)
        held.append(array)
        bound = {
            id(base) for base in held if any(np.shares_memory(base, t.data) for t in request.tensors.values())
        }
        most[0] = max(most[0], array.nbytes + sum(a.nbytes for a in held if id(a) in bound))
        return array

    monkeypatch.setattr(pool, "aligned", noted)
    request = Bound()
    budget = one * num_blocks + one - 1
    blocks = BlockCache([request], 10**6, budget)  # type: ignore[list-item]
    assert blocks.max_blocks == num_blocks
    table: list[int] = []
    while blocks.room(table, len(table) * BLOCK_SIZE):
        blocks.extend(table, (len(table) + 1) * BLOCK_SIZE)
    assert len(table) == num_blocks and 0 < most[0] <= budget
    with pytest.raises(ContextFull, match=f"{num_blocks} are there at most"):
        blocks.extend(table, (num_blocks + 1) * BLOCK_SIZE)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_growth_without_memory_changes_nothing(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is memory for the first tensor's new array only; a smaller growth is tried then."""
    request, blocks = new_cache(1000)
    table = filled(request, blocks, 20 * BLOCK_SIZE, 3)
    before, real = request.sizes, pool.aligned

    def short(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Any:
        if shape[0] > 60 or (shape[0] > 40 and shape[-1] == 8):
            raise error
        return real(shape, dtype)

    monkeypatch.setattr(pool, "aligned", short)
    blocks.extend(table, 38 * BLOCK_SIZE)  # twice as many as now would be too many
    assert request.sizes == {38}
    with pytest.raises(ContextFull):
        blocks.extend(table, 50 * BLOCK_SIZE)
    assert request.sizes == {38} and len(before) == 1
    assert (len(table), blocks.num_used_blocks, blocks.max_blocks) == (38, 38, 38)
    assert blocks.room(table, 38 * BLOCK_SIZE) == 0
    assert all((request.block(number) == 3).all() for number in table[:20])


def test_a_fork_that_cannot_be_copied_takes_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: BlockCache, source: int, target: int) -> None:
        raise MemoryError

    monkeypatch.setattr(BlockCache, "copy_block", failing)
    blocks = BlockCache([], 8)
    table: list[int] = []
    blocks.extend(table, 10)
    parents = FOUR_PATHS.parents()
    assert parents is not None
    with pytest.raises(MemoryError):
        segments.fork_segments(table, 10, FOUR_PATHS, parents, blocks, pad_single=True)
    assert blocks.num_used_blocks == 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFiles]:
    root = tmp_path_factory.mktemp("blocks")
    tiny_models.save_hf(root / "tiny", "llama", 2)
    with converting_here(root / "cache"):
        yield resolve(str(root / "tiny"), precision="fp32")


@pytest.fixture(scope="module")
def bytes_per_block(files: ModelFiles) -> int:
    model = load(files, LoadOptions(load_profile("xeon"))).model
    assert isinstance(model, PagedModel)
    return model.cache.bytes_for(1)


@pytest.fixture(scope="module", params=[0, 1], ids=["paged", "exit"])
def model(request: pytest.FixtureRequest, files: ModelFiles, bytes_per_block: int) -> Iterator[PagedModel]:
    """With a cache of `BLOCKS` blocks."""
    # The check of exactness needs more: it was answered when `bytes_per_block` was asked for, and here.
    load(files, LoadOptions(load_profile("xeon"), exit_layer=request.param))
    options = LoadOptions(
        load_profile("xeon"), exit_layer=request.param, cache_bytes=BLOCKS * bytes_per_block
    )
    model = load(files, options).model
    assert isinstance(model, PagedModel) and isinstance(model, ExitModel) == bool(request.param)
    assert model.cache.max_blocks == BLOCKS
    yield model
    assert model.cache.num_used_blocks == 0


def opened(model: PagedModel, length: int) -> Any:
    handle = model.open()
    output = model.step([Row(handle, Block.chain(IDS[:length]), logits="none")])
    assert not output.refused
    model.commit(handle, range(length))
    return handle


def next_logits(model: PagedModel, handle: Any) -> np.ndarray:
    start = handle.length
    found = np.array(model.step([Row(handle, Block.chain(IDS[start : start + 2]))]).logits)
    model.truncate(handle, start)
    return found


def test_a_forked_tree_that_finds_a_full_cache_is_refused_and_loses_no_blocks(model: PagedModel) -> None:
    other = model.open(2 * BLOCK_SIZE)
    handle = opened(model, 10)
    expected = next_logits(model, handle)
    for _ in range(3):
        output = model.step([Row(handle, FOUR_PATHS)])
        assert output.refused == {0: "cache"} and output.offsets == (0, 0)
        assert output.logits.shape == (0, model.vocab_size) and output.seconds == 0
        assert model.cache.num_used_blocks == 3
    assert np.array_equal(next_logits(model, handle), expected)
    model.close(other)
    model.close(handle)


def test_a_fork_that_needs_more_than_its_copy_loses_no_blocks(model: PagedModel) -> None:
    """The trunk fills its block, so nothing is copied; then each path takes a block, and one finds none."""
    handle = opened(model, BLOCK_SIZE)
    assert model.step([Row(handle, FOUR_PATHS)]).refused == {0: "cache"}
    assert model.cache.num_used_blocks == 1
    model.close(handle)


def test_the_other_rows_of_a_step_run(model: PagedModel) -> None:
    """The first row's tree fits (a block for its second path), the second row finds none, the third does."""
    first, second, third = opened(model, 10), opened(model, BLOCK_SIZE), model.open()
    tree = TokenTree((IDS[10], IDS[11], 7), (-1, 0, 0)).as_block()
    expected = next_logits(model, first)
    rows = [Row(first, tree), Row(second, Block.chain(IDS[:70])), Row(third, Block.chain(IDS[:12]))]
    output = model.step(rows)
    assert output.refused == {1: "cache"} and output.offsets == (0, 3, 3, 15)
    assert np.array_equal(output.logits_of(0)[:2], expected)
    assert np.array_equal(output.logits_of(2)[10:], expected)
    with pytest.raises(ValueError, match="ascending"):
        model.commit(second, [0, 1])  # nothing waits for it
    model.commit(first, [0, 2])
    assert (first.length, second.length, model.cache.num_used_blocks) == (12, BLOCK_SIZE, 3)
    assert model.step([Row(second, Block.chain(IDS[:200])), rows[1]]).refused == {0: "cache", 1: "cache"}
    for handle in (first, second, third):
        model.close(handle)


def test_room_is_what_is_taken(model: PagedModel) -> None:
    """Exact mode needs two tokens' room for one."""
    handle = model.open()
    assert model.room() == model.room(handle) == BLOCKS * BLOCK_SIZE
    with pytest.raises(ContextFull):
        model.open(BLOCKS * BLOCK_SIZE + 1)
    model.close(handle)
    handle = opened(model, BLOCKS * BLOCK_SIZE - 2)
    assert (model.room(handle), model.room()) == (2, 0)
    with pytest.raises(ContextFull):
        model.fork(handle, 40)
    fork = model.fork(handle, BLOCK_SIZE)
    assert (model.room(fork), model.room(handle), model.cache.num_used_blocks) == (0, 2, BLOCKS)
    model.truncate(fork, 20)
    assert model.step([Row(fork, Block.chain([5, 6]))]).refused == {0: "cache"}  # its block cannot be copied
    model.step([Row(handle, Block.chain([5]))])
    model.commit(handle, [0])
    assert model.room(handle) == 0
    assert model.step([Row(handle, Block.chain([5]))]).refused == {0: "cache"}
    model.close(handle)
    assert not model.step([Row(fork, Block.chain([5, 6]))]).refused
    model.close(fork)


def test_a_cache_that_is_too_small_for_any_text_is_said(files: ModelFiles) -> None:
    with pytest.raises(InvalidInput, match="--cache-memory"):
        load(files, LoadOptions(load_profile("xeon"), exact=False, cache_bytes=1000))


def test_a_step_that_fails_in_the_runtime_loses_no_blocks(
    model: PagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = opened(model, 10)

    def failing(*_: Any) -> float:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Request, "__call__", failing)
        with pytest.raises(RuntimeError):
            model.step([Row(handle, TokenTree((5, 6, 7), (-1, 0, 0)).as_block())])
    assert model.cache.num_used_blocks == 1
    model.close(handle)


def test_a_reservation_outlives_a_refused_step(model: PagedModel) -> None:
    handle, other = model.open(2 * BLOCK_SIZE), model.open(2 * BLOCK_SIZE)
    assert model.step([Row(handle, Block.chain(IDS[:70]))]).refused == {0: "cache"}
    assert (len(handle.table), model.cache.num_used_blocks) == (2, 4)
    model.close(handle)
    model.close(other)


def test_a_draft_that_is_refused_is_as_if_nobody_had_asked(model: PagedModel) -> None:
    if model.early_exit is None:
        pytest.skip("it does not draft")
    first, second, filler = opened(model, 30), opened(model, 30), model.open(BLOCK_SIZE)
    model.early_exit.draft([Row(first, Block.chain(IDS[30:31]))])
    rows = [Row(first, Block.chain(IDS[31:35])), Row(second, Block.chain(IDS[30:34]))]
    output = model.early_exit.draft(rows)  # one block is left, and both want one
    assert output.refused == {1: "cache"} and output.offsets == (0, 4, 4)
    assert (first.drafted, second.drafted) == (IDS[30:35], [])
    # A refused step keeps the draft, too.
    output = model.step([Row(first, Block.chain(IDS[30:100])), Row(second, Block.chain(IDS[30:32]))])
    assert output.refused == {0: "cache"} and len(output.logits) == 2
    assert first.drafted == IDS[30:35]
    for handle in (first, second, filler):
        model.close(handle)


@pytest.mark.parametrize("widest", [0, 4])
def test_a_draft_that_fails_is_as_if_nobody_had_asked(
    model: PagedModel, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a batch, and the first half of one that is run in halves, keep what they had drafted."""
    if model.early_exit is None:
        pytest.skip("it does not draft")
    first, second = opened(model, 30), opened(model, 30)
    model.early_exit.draft([Row(first, Block.chain(IDS[30:31]))])
    used, call, calls = model.cache.num_used_blocks, Request.__call__, []

    def failing(self: Request, inputs: Any) -> float:
        calls.append(self)
        if len(calls) > (3 if widest else 1):  # front and head of the first half, then the second's front
            raise RuntimeError("out of memory")
        return call(self, inputs)

    model.widest = widest
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Request, "__call__", failing)
            rows = [Row(first, Block.chain(IDS[31:35])), Row(second, Block.chain(IDS[30:34]))]
            with pytest.raises(RuntimeError):
                model.early_exit.draft(rows)
        assert (first.drafted, second.drafted) == (IDS[30:31], [])
        assert (len(first.stream), len(second.stream)) == (1, 0)
        assert model.cache.num_used_blocks == used
    finally:
        model.widest = 0
        for handle in (first, second):
            model.close(handle)


def test_steps_can_have_a_fewest_number_of_rows() -> None:
    """What is added is computed outside of attention only, and changes neither the cache nor any output."""
    lone = segments.chain_segment([3], 7, Block.chain([11]), pad_single=True)
    two = segments.chain_segment([4, 5], 40, Block.chain([12, 13]), pad_single=True)
    plain, wide = (batch._inputs([lone, two], [0, 3], [], batch.Padding(2, True, rows)) for rows in (1, 5))
    assert plain["input_ids"].tolist() == [11, 12, 13] and wide["input_ids"].tolist() == [11, 12, 13, 13, 13]
    assert wide["kept_rows"].tolist() == [0, 2, 3, 3, 3]
    assert wide["position_ids"].tolist() == [7, 40, 41, 41, 41]
    for name in {*plain} - {"input_ids", "position_ids", "kept_rows"}:
        assert plain[name].tolist() == wide[name].tolist(), name
