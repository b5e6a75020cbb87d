"""The OpenVINO backend on the embedded default model: exactness, rollback, trees, limits, leaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from specport.core.block import Block
from specport.core.ports import CacheHandle, Model, Row
from specport.core.tree import TokenTree
from specport.errors import ContextFull, DeviceError, ModelError
from specport.models.source import ModelFiles
from specport.runtime import numerics
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import Loaded, LoadOptions, backend_for

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
def loaded(files: ModelFiles) -> Loaded:
    options = LoadOptions(load_profile("xeon"), hidden_layers=HIDDEN, max_context=1024)
    return backend_for(options.profile).load(files, options)


@pytest.fixture(scope="module")
def model(loaded: Loaded) -> PagedModel:
    assert isinstance(loaded.model, PagedModel)
    return loaded.model


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


def chain(tokens: Sequence[int]) -> Block:
    return Block.chain(tokens)


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
            assert np.array_equal(output.logits_of(i), whole[handle.length : handle.length + n])
        for handle, n in zip(handles, step, strict=True):
            model.commit(handle, range(n))
    for handle in handles:
        model.close(handle)


@pytest.mark.parametrize(("news", "products", "attended"), [((1,), 2, 2), ((1, 1, 1), 3, 6), ((1, 4), 5, 6)])
def test_copies_of_lone_tokens_are_in_attention_only(
    model: PagedModel,
    whole: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    news: tuple[int, ...],
    products: int,
    attended: int,
) -> None:
    handles = [model.open() for _ in news]
    for handle in handles:
        feed(model, handle, [IDS[:40]])
    seen: list[tuple[int, int]] = []
    real = PagedModel._infer

    def spied(self: PagedModel, inputs: Mapping[str, NDArray[np.generic]]) -> float:
        seen.append((inputs["input_ids"].size, int(inputs["subsequence_begins"][-1])))
        return real(self, inputs)

    monkeypatch.setattr(PagedModel, "_infer", spied)
    output = model.step([Row(h, chain(IDS[40 : 40 + n])) for h, n in zip(handles, news, strict=True)])
    assert seen == [(products, attended)]
    for i, (handle, n) in enumerate(zip(handles, news, strict=True)):
        assert np.array_equal(output.logits_of(i), whole[40 : 40 + n])
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
        output = model.step([Row(handle, tree.as_block())])
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
        model.step([Row(handle, tree.as_block())])
    model.truncate(handle, 40)
    assert model.cache.num_used_blocks <= used
    assert np.array_equal(feed(model, handle, [IDS[40:50]]), whole[40:50])


def test_preparing_leaves_nothing(
    loaded: Loaded, model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32]
) -> None:
    feed(model, handle, [IDS[:40]])
    used = model.cache.num_used_blocks
    assert loaded.prepare is not None
    loaded.prepare()
    assert model.cache.num_used_blocks == used
    assert np.array_equal(feed(model, handle, [IDS[40:]]), whole[40:])


def test_wrong_commits_are_refused(model: PagedModel, handle: PagedSequence) -> None:
    model.step([Row(handle, TokenTree((1, 2, 3), (-1, 0, 0)).as_block())])
    with pytest.raises(ValueError, match="path"):
        model.commit(handle, [0, 1, 2])
    with pytest.raises(ValueError, match="truncate"):
        model.truncate(handle, 5)


def test_context_limit_is_said_before_anything_changes(model: PagedModel, handle: PagedSequence) -> None:
    ids = (IDS * 3)[:1023]
    feed(model, handle, [ids])
    other = model.open()
    output = model.step([Row(handle, chain([1, 2])), Row(other, chain(IDS[:3])), Row(handle, chain(ids))])
    assert output.refused == {0: "context", 2: "context"} and output.offsets == (0, 0, 3, 3)
    model.close(other)
    assert (handle.length, model.room(handle)) == (1023, 1)
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
    for i in range(40):  # 200 in the conformance suite
        handle = model.open()
        model.step([Row(handle, chain(IDS[i : i + 40]), logits="last")])
        if i % 2:
            model.commit(handle, range(40))
        model.close(handle)
        model.close(handle)  # twice is harmless
    assert (model.cache.num_used_blocks, model.cache.nbytes) == (0, before)


def test_hidden_states_and_logits_are_asked_for_apart(
    model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32]
) -> None:
    output = model.step([Row(handle, chain(IDS[:20]), hidden="all")])
    first = {layer: output.hidden[layer].copy() for layer in HIDDEN}
    assert model.capabilities.hidden_layers == HIDDEN
    assert all(first[layer].shape == (20, 576) for layer in HIDDEN)
    assert not np.allclose(first[5], first[20])
    model.commit(handle, [])
    tree = TokenTree((IDS[0], 5, IDS[1], IDS[2]), (-1, 0, 0, 2))
    other = model.open()
    rows = [
        Row(handle, tree.as_block(), logits="none", hidden="all"),
        Row(other, chain(IDS[:20]), logits="last", hidden="last"),
        Row(model.fork(handle, 0), chain(IDS[:2])),
    ]
    output = model.step(rows)
    assert (output.offsets, output.hidden_offsets) == ((0, 0, 1, 3), (0, 4, 5, 5))
    assert np.array_equal(output.logits, whole[[19, 0, 1]])
    for layer in HIDDEN:
        assert np.array_equal(output.hidden_of(0)[layer][[0, 2, 3]], first[layer][:3])
        assert np.array_equal(output.hidden_of(1)[layer], first[layer][19:])
    assert not model.step([Row(other, chain(IDS[:2]))]).hidden  # nobody asked
    for row in rows[1:]:
        model.close(row.handle)


def test_a_step_without_logits_fills_the_cache(
    model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32]
) -> None:
    other = model.open()
    for start, stop in ((0, 50), (50, 51), (51, 90)):
        rows = [Row(h, chain(IDS[start:stop]), logits="none") for h in (handle, other)]
        output = model.step(rows)
        assert output.logits.shape == (0, 49152) and output.offsets == (0, 0, 0) and not output.hidden
        for row in rows:
            model.commit(row.handle, range(stop - start))
    output = model.step(
        [Row(handle, chain(IDS[90:93]), logits="none"), Row(other, chain(IDS[90:92]), "last")]
    )
    assert output.offsets == (0, 0, 1) and np.array_equal(output.logits[0], whole[91])
    model.close(other)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 64, 70])
def test_a_fork_shares_what_is_full_and_each_writes_alone(
    model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32], length: int
) -> None:
    feed(model, handle, [IDS[:70]])
    used = model.cache.num_used_blocks
    fork = model.fork(handle, length)
    assert model.cache.num_used_blocks == used + bool(length % BLOCK_SIZE)
    assert (fork.length, model.room(fork)) == (length, 1024 - length)
    feed(model, fork, [[9] * 40])
    second = model.fork(fork, length)  # of the fork's own beginning
    assert np.array_equal(feed(model, second, [IDS[length:100]]), whole[length:100])
    assert np.array_equal(feed(model, handle, [IDS[70:80]]), whole[70:80])
    model.close(fork)
    model.truncate(handle, 40)
    assert np.array_equal(feed(model, second, [IDS[100:140]]), whole[100:140])
    assert np.array_equal(feed(model, handle, [IDS[40:80]]), whole[40:80])
    model.close(second)
    with pytest.raises(ValueError, match="cannot fork"):
        model.fork(handle, 81)


def test_a_shared_block_that_is_truncated_into_is_copied(
    model: PagedModel, handle: PagedSequence, whole: NDArray[np.float32]
) -> None:
    feed(model, handle, [IDS[:64]])
    forks = [model.fork(handle, 64) for _ in range(3)]
    assert model.cache.num_used_blocks == 2
    for fork, kept in zip(forks, (40, 63, 32), strict=True):
        model.truncate(fork, kept)
        tree, path = random_tree(np.random.default_rng(kept), [9, 8, 7, 6])
        model.step([Row(fork, tree.as_block())])
        model.commit(fork, path)
    model.truncate(handle, 50)
    assert np.array_equal(feed(model, handle, [IDS[50:60]]), whole[50:60])
    for fork, kept in zip(forks, (40, 63, 32), strict=True):
        model.truncate(fork, kept)
        assert np.array_equal(feed(model, fork, [IDS[kept:70]]), whole[kept:70])
        model.close(fork)


def test_blocks_that_exact_mode_cannot_step_are_refused(model: PagedModel, handle: PagedSequence) -> None:
    assert (model.capabilities.visibility, model.capabilities.gather) == ("tree", False)
    both = Block((1, 2), (0, 1), np.ones((2, 2), dtype=np.bool_))
    for block in (both, Block((1, 2), (0, 5)), chain([])):
        with pytest.raises(ValueError, match=r"neither a chain nor a tree|at least one token"):
            model.step([Row(handle, chain([3])), Row(handle, block)])
    with pytest.raises(ValueError, match="conditioning"):
        model.open(conditioning=object())
    with pytest.raises(ContextFull, match="1025"):
        model.open(1025)


def test_cut_head_keeps_some_logits_and_the_rows_of_all(files: ModelFiles) -> None:
    uncut = load(files, LoadOptions(load_profile("xeon"))).model
    keep = tuple(int(i) for i in np.random.default_rng(1).permutation(49152)[:1000])
    cut = load(files, LoadOptions(load_profile("xeon"), head_tokens=keep))
    cut_model = cut.model
    assert isinstance(cut_model, PagedModel)
    assert cut_model.vocab_size == 1000
    assert cut.head_tokens == tuple(keep)
    assert cut_model.head_rows is not None and uncut.head_rows is None
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
    fast.step([Row(handle, tree.as_block())])
    fast.commit(handle, path)
    assert handle.length == 57


@pytest.fixture(scope="module")
def masked(files: ModelFiles) -> PagedModel:
    """With an unquantised cache and full arithmetic: a mask instead of one copy for each path."""
    full = {
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    profile = replace(load_profile("xeon"), fast=full)
    model = load(files, LoadOptions(profile, exact=False, max_context=512)).model
    assert isinstance(model, PagedModel)
    assert (model.capabilities.visibility, model.capabilities.gather) == ("any", True)
    return model


def near(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    return bool(np.abs(found - expected).max() < 0.01)


def test_trees_under_a_mask_equal_chains(masked: PagedModel) -> None:
    handle = masked.open()
    expected = feed(masked, handle, [IDS[:70]])
    masked.truncate(handle, 51)
    tree, path = random_tree(np.random.default_rng(3), IDS[51:57])
    output = masked.step([Row(handle, tree.as_block())])
    assert near(output.logits[path], expected[51:57])
    masked.commit(handle, path)
    assert near(feed(masked, handle, [IDS[57:60]]), expected[57:60])
    masked.close(handle)


def test_any_visibility_and_any_tokens_kept(masked: PagedModel) -> None:
    handle, other = masked.open(), masked.open()
    chained = feed(masked, handle, [IDS[:70]])
    masked.truncate(handle, 40)
    feed(masked, other, [IDS[:40]])
    new = tuple(IDS[40:45])
    everything = np.ones((5, 5), dtype=np.bool_)

    def logits(tokens: Sequence[int], visible: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Beside a chain and a second such block, which must not matter."""
        block = Block(tuple(tokens), tuple(range(len(tokens))), visible)
        rows = [Row(other, block), Row(handle, block), Row(masked.fork(other, 40), chain(new))]
        output = masked.step(rows)
        assert near(output.logits_of(0), output.logits_of(1)) and near(output.logits_of(2), chained[40:45])
        masked.close(rows[2].handle)
        return output.logits_of(1).copy()

    both = logits(new, everything)
    assert not near(both[0], chained[40])  # it sees those behind it,
    assert not near(logits([*new[:4], 7], everything)[0], both[0])  # the last one too
    # Two that see each other, across one that neither sees.
    pair = np.eye(3, dtype=np.bool_)
    pair[0, 2] = pair[2, 0] = True
    first, second = logits([new[0], 7, new[2]], pair), logits([new[0], 8, new[2]], pair)
    assert np.array_equal(first[[0, 2]], second[[0, 2]]) and not near(first[1], second[1])
    alone = masked.step(
        [Row(other, Block((new[0], new[2]), (0, 2), np.ones((2, 2), dtype=np.bool_)))]
    ).logits.copy()
    assert near(alone, first[[0, 2]])
    # Kept from the middle of a block: as if the others had never been there.
    masked.step([Row(handle, Block((new[0], 7, new[2]), (0, 1, 2), pair))])
    masked.commit(handle, [0, 2])
    masked.step([Row(other, Block((new[0], new[2]), (0, 2), np.ones((2, 2), dtype=np.bool_)))])
    masked.commit(other, [0, 1])
    output = masked.step([Row(h, chain(IDS[50:53])) for h in (handle, other)])
    assert near(output.logits_of(0), output.logits_of(1))
    for wrong in ([0, 0], [2, 1], [3]):
        with pytest.raises(ValueError, match="ascending"):
            masked.commit(handle, wrong)
    masked.close(handle)
    masked.close(other)
    assert masked.cache.num_used_blocks == 0


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
    answers = iter([False, True, *[False] * 4])
    monkeypatch.setattr(numerics, "is_invariant", lambda model, past: next(answers))
    told: list[str] = []
    options = LoadOptions(load_profile("xeon"), progress=lambda what, share: told.append(what))
    loaded = load(files, options)
    assert loaded.model.capabilities.exact and "f32" in loaded.notes[-1]
    assert {*told} == {"checking exact mode, once only"}
    told.clear()
    load(files, options)  # the answers are stored
    assert not told
    monkeypatch.setattr(numerics, "cache_root", lambda: tmp_path / "other")
    with pytest.raises(DeviceError, match="no exact mode"):
        load(files, LoadOptions(load_profile("xeon")))


def test_damaged_ir_is_one_line(tmp_path: Path, files: ModelFiles) -> None:
    xml = (files.folder / "openvino_model.xml").read_text(encoding="utf-8")
    (tmp_path / "openvino_model.xml").write_text(xml[: len(xml) // 2], encoding="utf-8")
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="OpenVINO IR"):
        surgery.read_model(tmp_path)
