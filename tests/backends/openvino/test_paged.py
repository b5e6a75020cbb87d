"""The OpenVINO backend on the embedded default model: exactness, rollback, trees, limits, leaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from specport.core.ports import CacheHandle, Model, Row
from specport.core.tree import TokenTree
from specport.errors import ContextFull, DeviceError, ModelError
from specport.models.source import ModelFiles, resolve
from specport.runtime import numerics
from specport.runtime.profiles import load_profile
from specport.runtime.registry import LoadOptions, backend_for

ov = pytest.importorskip("openvino")

from specport.backends.openvino.graph import surgery  # noqa: E402
from specport.backends.openvino.load import load  # noqa: E402
from specport.backends.openvino.paged.cache import BLOCK_SIZE  # noqa: E402
from specport.backends.openvino.paged.model import PagedModel, PagedSequence  # noqa: E402

pytestmark = pytest.mark.real_model

IDS = [int(i) for i in np.random.default_rng(7).integers(0, 49000, 420)]
HIDDEN = (5, 20)


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return resolve()


@pytest.fixture(scope="module")
def model(files: ModelFiles) -> PagedModel:
    options = LoadOptions(load_profile("xeon"), hidden_layers=HIDDEN, max_context=1024)
    loaded = backend_for(options.profile).load(files, options).model
    assert isinstance(loaded, PagedModel)
    return loaded


@pytest.fixture(scope="module")
def whole(model: PagedModel) -> NDArray[np.float32]:
    """Logits of IDS in one step."""
    handle = model.open()
    logits = feed(model, handle, [IDS])
    model.close(handle)
    return logits


@pytest.fixture
def handle(model: PagedModel) -> Iterator[PagedSequence]:
    handle = model.open()
    yield handle
    model.close(handle)
    assert model.cache.num_used_blocks == 0


def chain(tokens: Sequence[int]) -> TokenTree:
    return TokenTree.chain(tokens)


def feed(model: Model, handle: CacheHandle, chunks: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    parts = []
    for chunk in chunks:
        output = model.step([Row(handle, chain(chunk))])
        parts.append(output.logits.copy())
        model.commit(handle, range(len(chunk)))
    return np.concatenate(parts)


def cut(sizes: Sequence[int]) -> list[list[int]]:
    ends = np.cumsum([0, *sizes])
    return [IDS[a:b] for a, b in pairwise(ends)]


@pytest.mark.parametrize(
    "sizes",
    [[1] * 40, [2] * 30, [3] * 20, [16] * 8, [64] * 4, [128] * 3, [300, 1, 1, 1], [31, 1, 1, 32, 33, 7, 1]],
    ids=lambda sizes: f"{sizes[0]}x{len(sizes)}",
)
def test_logits_are_bit_identical_for_every_split(
    model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32], sizes: list[int]
) -> None:
    logits = feed(model, handle, cut(sizes))
    assert np.array_equal(logits, whole[: len(logits)])


def test_last_logits_of_a_prompt(
    model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32]
) -> None:
    output = model.step([Row(handle, chain(IDS[:200]), logits="last")])
    assert output.logits.shape == (1, 49152) and output.offsets == (0, 1)
    assert np.array_equal(output.logits[0], whole[199])


def test_ragged_batch_equals_single(model: PagedModel, whole: NDArray[np.float32]) -> None:
    handles = [model.open() for _ in range(4)]
    for step in ([50, 7, 1, 33], [1, 1, 9, 2], [3, 30, 1, 1]):
        rows = []
        for handle, n in zip(handles, step, strict=True):
            rows.append(Row(handle, chain(IDS[handle.length : handle.length + n])))
        output = model.step(rows)
        for i, (handle, n) in enumerate(zip(handles, step, strict=True)):
            own = output.logits[output.offsets[i] : output.offsets[i + 1]]
            assert np.array_equal(own, whole[handle.length : handle.length + n])
        for handle, n in zip(handles, step, strict=True):
            model.commit(handle, range(n))
    for handle in handles:
        model.close(handle)


def random_tree(rng: np.random.Generator, truth: Sequence[int]) -> tuple[TokenTree, list[int]]:
    """A random tree that holds the path `truth` somewhere, and that path's nodes."""
    tokens, parents, path = [truth[0]], [-1], [0]
    while len(path) < len(truth) or rng.random() < 0.5:
        if len(path) < len(truth) and rng.random() < 0.5:
            parents.append(path[-1])
            tokens.append(truth[len(path)])
            path.append(len(tokens) - 1)
        else:
            parents.append(int(rng.integers(0, len(tokens))))
            tokens.append(int(rng.integers(0, 49000)))
    return TokenTree(tuple(tokens), tuple(parents)), path


@pytest.mark.parametrize("past", [5, 31, 32, 33, 64, 100])
def test_trees_equal_chains_and_commit_any_path(
    model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32], past: int
) -> None:
    rng = np.random.default_rng(past)
    feed(model, handle, [IDS[:past]])
    while handle.length < past + 40:
        start = handle.length
        tree, path = random_tree(rng, IDS[start : start + 6])
        output = model.step([Row(handle, tree)])
        assert np.array_equal(output.logits[path], whole[start : start + 6])
        kept = path[: int(rng.integers(1, 7))]
        model.commit(handle, kept)
        assert handle.length == start + len(kept)
    # What was committed is what a chain would have left.
    start = handle.length
    assert np.array_equal(feed(model, handle, [IDS[start : start + 9]]), whole[start : start + 9])


def test_rollback_after_every_pattern(
    model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32]
) -> None:
    wrong = [7, 8, 9, 10]
    for kept in range(5):
        start = handle.length
        model.step([Row(handle, chain([*IDS[start : start + kept], *wrong[kept:]]))])
        model.commit(handle, range(kept))
    feed(model, handle, [IDS[handle.length : 100]])
    for length in (99, 64, 63, 33, 32, 0):
        model.truncate(handle, length)
        assert np.array_equal(feed(model, handle, [IDS[length:101]]), whole[length:101])


def test_a_step_that_is_never_committed_leaves_nothing(
    model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32]
) -> None:
    feed(model, handle, [IDS[:40]])
    tree, _ = random_tree(np.random.default_rng(0), IDS[50:56])
    used = model.cache.num_used_blocks
    for _ in range(3):
        model.step([Row(handle, tree)])
    model.truncate(handle, 40)
    assert model.cache.num_used_blocks <= used
    assert np.array_equal(feed(model, handle, [IDS[40:50]]), whole[40:50])


def test_wrong_commits_are_refused(model: PagedModel, handle: PagedSequence) -> None:
    model.step([Row(handle, TokenTree((1, 2, 3), (-1, 0, 0)))])
    with pytest.raises(ValueError, match="path"):
        model.commit(handle, [0, 1, 2])
    with pytest.raises(ValueError, match="truncate"):
        model.truncate(handle, 5)


def test_context_limit_is_said_before_anything_changes(model: PagedModel, handle: PagedSequence) -> None:
    ids = (IDS * 3)[:1023]
    feed(model, handle, [ids])
    with pytest.raises(ContextFull, match="1024"):
        model.step([Row(handle, chain([1, 2]))])
    assert handle.length == 1023
    feed(model, handle, [[1]])
    assert handle.length == 1024


def test_cache_grows_in_blocks_and_keeps_its_content(
    model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32]
) -> None:
    feed(model, handle, [IDS[:45]])
    others = []
    before = model.cache.nbytes
    while model.cache.nbytes == before:  # fill the pool until it is replaced by a larger one
        others.append(model.open(8 * BLOCK_SIZE))
    assert np.array_equal(feed(model, handle, [IDS[45:60]]), whole[45:60])
    for other in others:
        model.close(other)


def test_memory_is_flat_over_many_sequences(model: PagedModel) -> None:
    before = model.cache.nbytes
    for i in range(200):
        handle = model.open()
        model.step([Row(handle, chain(IDS[i : i + 40]), logits="last")])
        if i % 2:
            model.commit(handle, range(40))
        model.close(handle)
        model.close(handle)  # twice is harmless
    assert (model.cache.num_used_blocks, model.cache.nbytes) == (0, before)


def test_hidden_states_stand_beside_the_logits(model: PagedModel, handle: PagedSequence) -> None:
    output = model.step([Row(handle, chain(IDS[:20]))])
    first = {layer: output.hidden[layer].copy() for layer in HIDDEN}
    assert model.capabilities.hidden_states == HIDDEN
    assert all(first[layer].shape == (20, 576) for layer in HIDDEN)
    assert not np.allclose(first[5], first[20])
    model.commit(handle, [])
    tree = TokenTree((IDS[0], 5, IDS[1], IDS[2]), (-1, 0, 0, 2))
    again = model.step([Row(handle, tree)]).hidden
    for layer in HIDDEN:
        assert np.array_equal(again[layer][[0, 2, 3]], first[layer][:3])


def test_cut_head_keeps_some_logits_and_the_rows_of_all(files: ModelFiles) -> None:
    uncut = load(files, LoadOptions(load_profile("xeon"))).model
    keep = tuple(int(i) for i in np.random.default_rng(1).permutation(49152)[:1000])
    cut = load(files, LoadOptions(load_profile("xeon"), head_tokens=keep))
    cut_model = cut.model
    assert isinstance(cut_model, PagedModel)
    assert cut_model.vocab_size == 1000
    assert cut.head_tokens == tuple(keep)
    assert cut_model.capabilities.head_rows and not uncut.capabilities.head_rows
    output = cut_model.step([Row(cut_model.open(), chain(IDS[:30]))])
    rest = sorted({*range(0, 49152, 7)} - {*keep})
    products = np.asarray(output.head_input) @ cut_model.head_rows([*keep, *rest]).T
    # The runtime rounds the head's inputs to 8 bits; these products are of what was not rounded.
    assert np.abs(products[:, :1000] - output.logits).mean() < 0.2
    whole_logits = feed(uncut, uncut.open(), [IDS[:30]])
    # With one more output it fuses less, and rounds in other places all the way.
    for ids, found in ((keep, output.logits), (rest, products[:, 1000:])):
        assert np.corrcoef(found.ravel(), whole_logits[:, ids].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("keep", [(), (1, 1), (-1, 2), (49152,)])
def test_cut_heads_that_make_no_sense_are_refused(files: ModelFiles, keep: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="head tokens"):
        load(files, LoadOptions(load_profile("xeon"), head_tokens=keep))


def test_fast_mode_runs_trees_and_chains(files: ModelFiles, whole: NDArray[np.float32]) -> None:
    fast = load(files, LoadOptions(load_profile("xeon"), exact=False)).model
    assert isinstance(fast, PagedModel) and not fast.capabilities.exact
    handle = fast.open()
    logits = feed(fast, handle, [IDS[:50], [IDS[50]]])
    assert 0 < np.abs(logits - whole[:51]).max() < 8
    tree, path = random_tree(np.random.default_rng(3), IDS[51:57])
    fast.step([Row(handle, tree)])
    fast.commit(handle, path)
    assert handle.length == 57
    # An unquantised cache takes a mask instead of one copy for each path; both mean the same.
    profile = replace(load_profile("xeon"), fast={"KV_CACHE_PRECISION": "f16"})
    masked = load(files, LoadOptions(profile, exact=False)).model
    handle = masked.open()
    feed(masked, handle, [IDS[:51]])
    output = masked.step([Row(handle, tree)])
    assert np.abs(output.logits[path] - whole[51:57]).max() < 2
    masked.commit(handle, path)
    after = feed(masked, handle, [IDS[57:60]])
    assert np.abs(after - whole[57:60]).max() < 2


def test_the_invariance_check_can_fail(files: ModelFiles, model: PagedModel) -> None:
    """Single tokens left bare take another kernel, and the check sees it."""
    assert numerics.is_invariant(model)
    bare = load(
        files, LoadOptions(replace(load_profile("xeon"), fast={"KV_CACHE_PRECISION": "f16"}), exact=False)
    )
    assert isinstance(bare.model, PagedModel)
    assert not numerics.is_invariant(bare.model)


def test_answers_are_kept_and_a_damaged_file_only_costs_a_check(tmp_path: Path) -> None:
    answers = numerics.Answers(tmp_path / "deep" / "exact.json")
    assert answers.get("a") is None
    answers.put("a", True)
    answers.put("b", False)
    assert (answers.get("a"), answers.get("b")) == (True, False)
    (tmp_path / "deep" / "exact.json").write_text("{broken")
    assert answers.get("a") is None
    answers.put("a", False)
    assert answers.get("a") is False


def test_fallback_to_f32_is_said(files: ModelFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(numerics, "cache_root", lambda: tmp_path)
    answers = iter([False, True, False, False])
    monkeypatch.setattr(numerics, "is_invariant", lambda model, past: next(answers))
    loaded = load(files, LoadOptions(load_profile("xeon")))
    assert loaded.model.capabilities.exact and "f32" in loaded.notes[0]
    monkeypatch.setattr(numerics, "cache_root", lambda: tmp_path / "other")
    with pytest.raises(DeviceError, match="no exact mode"):
        load(files, LoadOptions(load_profile("xeon")))


def test_damaged_ir_is_one_line(tmp_path: Path, files: ModelFiles) -> None:
    xml = (files.folder / "openvino_model.xml").read_text(encoding="utf-8")
    (tmp_path / "openvino_model.xml").write_text(xml[: len(xml) // 2], encoding="utf-8")
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="OpenVINO IR"):
        surgery.read_model(tmp_path)
