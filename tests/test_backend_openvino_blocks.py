"""Blocks of the key/value cache: what a failed step took is given back, whichever row failed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from specport.backends.openvino.load import load  # noqa: E402
from specport.backends.openvino.paged import batch, cache  # noqa: E402
from specport.backends.openvino.paged.cache import BLOCK_SIZE, BlockCache  # noqa: E402
from specport.backends.openvino.paged.early_exit import ExitModel  # noqa: E402
from specport.backends.openvino.paged.model import PagedModel  # noqa: E402
from support import tiny_models  # noqa: E402

from specport.core.ports import Row  # noqa: E402
from specport.core.tree import TokenTree  # noqa: E402
from specport.errors import ContextFull  # noqa: E402
from specport.models.source import ModelFiles, resolve  # noqa: E402
from specport.runtime.profiles import load_profile  # noqa: E402
from specport.runtime.registry import LoadOptions  # noqa: E402

IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 200)]
FORKED = TokenTree((5, 6, 7, 8, 9), (-1, 0, 0, 0, 0))  # four paths
BLOCKS = 4


def empty_cache(num_blocks: int) -> BlockCache:
    return BlockCache([], num_blocks)


def test_a_fork_that_fails_takes_no_blocks() -> None:
    """The trunk has one part-filled block; the second of its four forks finds no block."""
    blocks = empty_cache(2)
    table: list[int] = []
    blocks.extend(table, 10)
    with pytest.raises(ContextFull):
        batch.fork_segments(table, 10, FORKED, blocks, pad_single=True)
    assert (blocks.num_used_blocks, len(table)) == (1, 1)
    blocks.release(table)
    assert blocks.num_used_blocks == 0


def test_a_fork_that_cannot_be_copied_takes_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: BlockCache, source: int, target: int) -> None:
        raise MemoryError

    monkeypatch.setattr(BlockCache, "copy_block", failing)
    blocks = empty_cache(8)
    table: list[int] = []
    blocks.extend(table, 10)
    with pytest.raises(MemoryError):
        batch.fork_segments(table, 10, FORKED, blocks, pad_single=True)
    assert blocks.num_used_blocks == 1


def test_growth_without_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shapes of cache tensors; there is memory for the new array of one of them only."""

    class Port:
        def __init__(self, name: str, width: int) -> None:
            self.names, self.width = {name}, width

        def get_partial_shape(self) -> Any:
            return [SimpleNamespace(get_length=lambda n=n: n) for n in (0, 2, BLOCK_SIZE, self.width)]

        def get_element_type(self) -> Any:
            return ov.Type.f32

    bound: dict[str, Any] = {}
    request = SimpleNamespace(
        compiled=SimpleNamespace(inputs=[Port("key_cache.0", 4), Port("value_cache.0", 8)]),
        bind=lambda port, tensor: bound.update({next(iter(port.names)): tensor}),
    )
    blocks = BlockCache([request], 1000)  # type: ignore[list-item]
    before, real, calls = {**bound}, cache.aligned, []

    def short(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Any:
        calls.append(shape)
        if len(calls) == 2:
            raise MemoryError
        return real(shape, dtype)

    monkeypatch.setattr(cache, "aligned", short)
    table: list[int] = []
    with pytest.raises(MemoryError):
        blocks.extend(table, 100 * BLOCK_SIZE)
    assert bound == before and table == [] and blocks.num_used_blocks == 0
    blocks.extend(table, 100 * BLOCK_SIZE)
    assert all(bound[name].shape[0] >= 100 for name in bound)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFiles]:
    root = tmp_path_factory.mktemp("blocks")
    tiny_models.save_hf(root / "tiny", "llama", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECPORT_CACHE", str(root / "cache"))
        yield resolve(str(root / "tiny"), precision="fp32")


@pytest.fixture(scope="module", params=[0, 1], ids=["paged", "exit"])
def loaded(request: pytest.FixtureRequest, files: ModelFiles) -> PagedModel:
    model = load(files, LoadOptions(load_profile("xeon"), exit_layer=request.param)).model
    assert isinstance(model, PagedModel) and isinstance(model, ExitModel) == bool(request.param)
    return model


@pytest.fixture
def model(loaded: PagedModel) -> PagedModel:
    """With an empty cache of `BLOCKS` blocks."""
    requests = (loaded._front, loaded._back) if isinstance(loaded, ExitModel) else (loaded._request,)
    loaded.cache = BlockCache(requests, BLOCKS)
    return loaded


def opened(model: PagedModel, length: int) -> Any:
    handle = model.open()
    model.step([Row(handle, TokenTree.chain(IDS[:length]), logits="last")])
    model.commit(handle, range(length))
    return handle


def next_logits(model: PagedModel, handle: Any) -> np.ndarray:
    start = handle.length
    found = np.array(model.step([Row(handle, TokenTree.chain(IDS[start : start + 2]))]).logits)
    model.truncate(handle, start)
    return found


def test_a_forked_tree_that_finds_a_full_cache_loses_no_blocks(model: PagedModel) -> None:
    other = model.open(2 * BLOCK_SIZE)
    handle = opened(model, 10)
    expected = next_logits(model, handle)
    for _ in range(3):
        with pytest.raises(ContextFull):
            model.step([Row(handle, FORKED)])
        assert model.cache.num_used_blocks == 3
    assert np.array_equal(next_logits(model, handle), expected)
    model.close(other)
    model.close(handle)
    assert model.cache.num_used_blocks == 0


def test_a_fork_that_needs_more_than_its_copy_loses_no_blocks(model: PagedModel) -> None:
    """The trunk fills its block: nothing is copied, each path takes a block, and one finds none."""
    handle = opened(model, BLOCK_SIZE)
    with pytest.raises(ContextFull):
        model.step([Row(handle, FORKED)])
    assert model.cache.num_used_blocks == 1
    model.close(handle)
    assert model.cache.num_used_blocks == 0


def test_rows_laid_out_before_the_one_that_failed_lose_no_blocks(model: PagedModel) -> None:
    """The first row's tree fits (one block for its second path); the second row then finds no block."""
    first, second = opened(model, 10), opened(model, BLOCK_SIZE)
    tree = TokenTree((5, 6, 7), (-1, 0, 0))
    expected = next_logits(model, first)
    assert model.cache.num_used_blocks == 2
    with pytest.raises(ContextFull):
        model.step([Row(first, tree), Row(second, TokenTree.chain(IDS[:70]))])
    assert model.cache.num_used_blocks == 2
    with pytest.raises(ValueError, match="path"):
        model.commit(first, [0, 1])  # nothing waits for it
    assert np.array_equal(next_logits(model, first), expected)
    model.close(first)
    model.close(second)
    assert model.cache.num_used_blocks == 0


def test_a_step_that_fails_in_the_runtime_loses_no_blocks(
    model: PagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = opened(model, 10)

    def failing(*_: Any) -> float:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model, "_infer", failing)
        with pytest.raises(RuntimeError):
            model.step([Row(handle, FORKED)])
    assert model.cache.num_used_blocks == 1
    model.close(handle)


def test_a_reservation_outlives_a_failed_step(model: PagedModel) -> None:
    handle, other = model.open(2 * BLOCK_SIZE), model.open(2 * BLOCK_SIZE)
    with pytest.raises(ContextFull):
        model.step([Row(handle, TokenTree.chain(IDS[:70]))])
    assert (len(handle.table), model.cache.num_used_blocks) == (2, 4)
    model.close(handle)
    model.close(other)
    assert model.cache.num_used_blocks == 0


@pytest.mark.parametrize("widest", [0, 4])
def test_a_draft_that_fails_is_as_if_nobody_had_asked(model: PagedModel, widest: int) -> None:
    """Rows of a batch, and the first half of one that is run in halves, keep what they had drafted."""
    if not isinstance(model, ExitModel):
        pytest.skip("it does not draft")
    first, second = opened(model, 30), opened(model, 30)
    model.draft([Row(first, TokenTree.chain(IDS[30:31]))])
    filler = model.open(BLOCK_SIZE)
    model.widest = widest
    try:
        with pytest.raises(ContextFull):  # one block is left, and both want one
            model.draft([Row(first, TokenTree.chain(IDS[31:35])), Row(second, TokenTree.chain(IDS[30:34]))])
        assert (first.drafted, second.drafted) == (IDS[30:31], [])
        assert (len(first.stream), len(second.stream)) == (1, 0)
        assert model.cache.num_used_blocks == 3
    finally:
        model.widest = 0
        for handle in (first, second, filler):
            model.close(handle)
    assert model.cache.num_used_blocks == 0
