"""The torch backend on tiny random models, against transformers' own forward pass."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes.own_cache import own_cache  # noqa: F401
from support.toys.toy_model import ToyModel

import specport
from specport.core.arrays import to_host
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Block, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.core.verify.rules import rule_for
from specport.drafters.model.drafter import ModelDrafter
from specport.errors import ContextFull, DeviceError, InvalidInput, ModelError
from specport.models.source import ModelFiles
from specport.runtime import numerics
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions, backend_for

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.backends.torch import devices, fake_hpu, packed_linear  # noqa: E402
from specport.backends.torch.load import load  # noqa: E402
from specport.backends.torch.slots.batch import Widths, window  # noqa: E402
from specport.backends.torch.slots.model import SlotModel  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

pytestmark = pytest.mark.stack
KINDS = ("llama", "qwen2", "qwen3", "gemma3_text")
DEVICES = ("torch-cpu", "gaudi-emulated")
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 240)]
TREE = TokenTree((5, IDS[157], 6, IDS[158], 7, IDS[159]), (-1, -1, 1, 1, 3, 3)).as_block()
PATH = [1, 3, 5]
FAR = 1e-4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.save_kinds(tmp_path_factory.mktemp("models"), KINDS)


def files(folder: Path, precision: str = "fp32") -> ModelFiles:
    return resolve(str(folder), precision=precision, weights="huggingface")


def model_on(folder: Path, device: str = "torch-cpu", precision: str = "fp32", **options: Any) -> SlotModel:
    profile = load_profile(device)
    found = load(files(folder, precision), LoadOptions(profile, **options)).model
    assert isinstance(found, SlotModel)
    return found


@pytest.fixture(scope="module")
def llama(folders: dict[str, Path]) -> SlotModel:
    return model_on(folders["llama"])


def logits(model: SlotModel, handle: Any, tokens: Sequence[int], which: Any = "all") -> Any:
    output = model.step([Row(handle, Block.chain(tokens), logits=which)])
    return to_host(output.logits).copy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind: str, device: str, folders: dict[str, Path]) -> None:
    with torch.no_grad():
        want = tiny_models.hf_model(kind)(torch.tensor([IDS])).logits[0].numpy()
    model = model_on(folders[kind], device, exact=False)
    handle = model.open()
    last = logits(model, handle, IDS[:150], "last")
    assert last.shape[0] == 1 and abs(last - want[149]).max() < FAR
    model.commit(handle, range(150))
    assert abs(logits(model, handle, IDS[150:157]) - want[150:157]).max() < FAR
    model.commit(handle, range(7))
    tree = to_host(model.step([Row(handle, TREE)]).logits)
    assert abs(tree[PATH] - want[157:160]).max() < FAR
    model.commit(handle, PATH)
    assert abs(logits(model, handle, IDS[160:]) - want[160:]).max() < FAR  # past the sliding window


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
def test_exact_means_bit_identical(device: str, precision: str, folders: dict[str, Path]) -> None:
    model = model_on(folders["qwen2"], device, precision)
    assert model.capabilities.exact and model.capabilities.min_width > 1
    assert numerics.is_invariant(model) and numerics.is_invariant(model, past=120)


def test_the_check_fails_where_rounding_depends_on_the_split(folders: dict[str, Path]) -> None:
    # A lone token takes other kernels than two or more.
    lone = model_on(folders["qwen2"], exact=False)
    assert lone.capabilities.min_width == 1 and not numerics.is_invariant(lone)


def test_no_exact_mode_is_said(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "is_invariant", lambda model, past: False)
    monkeypatch.setattr(numerics.Answers, "get", lambda self, key: None)
    monkeypatch.setattr(numerics.Answers, "put", lambda self, key, answer: None)
    with pytest.raises(DeviceError, match="no exact mode"):
        model_on(folders["llama"])


def test_prompts_are_read_in_pieces_where_wide_steps_round_otherwise(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics.Answers, "get", lambda self, key: None)
    monkeypatch.setattr(numerics.Answers, "put", lambda self, key, answer: None)
    monkeypatch.setattr(numerics, "rounds_as_narrow", lambda model, width: width <= 32)
    for wide, read in ((True, ()), (False, (32,))):
        monkeypatch.setattr(numerics, "is_wide", lambda model, wide=wide: wide)
        model = model_on(folders["llama"])
        assert (model.widths.read, model.capabilities.batch) == (read, wide)


def test_packed_layers_compute_what_linear_layers_do() -> None:
    if not packed_linear.available(torch.float32):
        pytest.skip("this torch has no packed layers")
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 80, bias=False))
    with torch.no_grad():
        want = inner(x := torch.randn(2, 9, 64))
        packed_linear.pack(inner)
        assert all(isinstance(part, packed_linear.PackedLinear) for part in inner)
        assert torch.allclose(inner(x), want, atol=1e-5)
        rows = inner(x[:, :2])
        assert torch.equal(inner(x)[:, :2], rows)


@pytest.mark.parametrize(("above", "width"), [(999, 0), (40, 32), (12, 8)])
def test_the_widest_step_is_found_that_rounds_as_narrow_ones(
    above: int, width: int, llama: SlotModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Steps of more than `above` tokens round otherwise."""
    monkeypatch.setattr(numerics, "cache_root", lambda: tmp_path)
    step = llama.step

    def worse(rows: Sequence[Row]) -> Any:
        output = step(rows)
        if len(output.logits) and sum(len(row.block) for row in rows) > above:
            return replace(output, logits=output.logits + 1e-3)
        return output

    monkeypatch.setattr(llama, "step", worse)
    assert numerics.checked_width(llama, "key") == width


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("inputs", "outputs"), [(2048, 512), (576, 576), (64, 48)])
def test_exact_packed_layers_round_alike_for_any_number_of_rows(
    inputs: int, outputs: int, dtype: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With AMX, products of the first shape round differently in bf16 from 33 rows on."""
    if not packed_linear.available(dtype):
        pytest.skip("this torch has no packed layers")
    monkeypatch.setattr(numerics, "cache_root", lambda: tmp_path)
    packed_linear._rounds_alike.cache_clear()
    torch.manual_seed(0)
    layer = packed_linear.PackedLinear(torch.nn.Linear(inputs, outputs).to(dtype), exact=True)
    x = torch.randn(300, inputs).to(dtype)
    want = torch.cat([layer(part) for part in x.split(4)])
    for rows in (2, 31, 32, 33, 40, 65, 97, 300):
        assert torch.equal(layer(x[:rows]), want[:rows])


def test_products_of_many_rows_are_computed_in_pieces_where_they_round_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not packed_linear.available(torch.float32):
        pytest.skip("this torch has no packed layers")
    monkeypatch.setattr(packed_linear, "_rounds_alike", lambda *_: False)
    product, seen = packed_linear._product, []
    monkeypatch.setattr(packed_linear, "_product", lambda x, *rest: seen.append(len(x)) or product(x, *rest))
    linear = torch.nn.Linear(16, 24)
    x = torch.randn(1, 65, 16)
    found = packed_linear.PackedLinear(linear, exact=True)(x)
    assert seen == [32, 32, 2] and torch.allclose(found, linear(x), atol=1e-6)  # a lone row is padded
    assert packed_linear.PackedLinear(linear)(x).shape == found.shape
    assert seen[3:] == [1]  # [1, 65, 16] at once


def test_ragged_batches_equal_single_rows(llama: SlotModel) -> None:
    def run(handles: list[Any], chunks: list[list[int]]) -> list[Any]:
        rows = [Row(h, Block.chain(c)) for h, c in zip(handles, chunks, strict=True)]
        output = model.step(rows)
        found = [to_host(output.logits_of(i)).copy() for i in range(len(rows))]
        for row in rows:
            model.commit(row.handle, range(len(row.block)))
        return found

    model = llama
    chunks = [IDS[:5], IDS[20:23], IDS[40:100], IDS[100:101]]  # one is read in pieces beside the others
    handles = [model.open() for _ in chunks]
    together = [run(handles, chunks), run(handles, [[7], [8, 9], [10], [11, 12, 13]])]
    for handle in handles:
        model.close(handle)
    for i, chunk in enumerate(chunks):
        handle = model.open()
        alone = run([handle], [chunk])[0]
        assert np.array_equal(alone, together[0][i])
        assert np.array_equal(run([handle], [[[7], [8, 9], [10], [11, 12, 13]][i]])[0], together[1][i])
        model.close(handle)


def test_closed_slots_are_used_again_and_others_keep_their_content(llama: SlotModel) -> None:
    handles = [llama.open() for _ in range(3)]
    for i, handle in enumerate(handles):
        logits(llama, handle, IDS[i : i + 30], "last")
        llama.commit(handle, range(30))
    before = logits(llama, handles[1], [3, 4])
    llama.close(handles[0])
    llama.close(handles[0])  # twice is harmless
    again = llama.open()
    assert again.slot == 0 and llama.cache.slots == 4
    logits(llama, again, IDS[:100], "last")
    llama.commit(again, range(100))
    assert np.array_equal(logits(llama, handles[1], [3, 4]), before)
    for handle in (again, *handles[1:]):
        llama.close(handle)


def test_a_cache_that_grows_keeps_what_it_holds(folders: dict[str, Path]) -> None:
    grown, whole = model_on(folders["llama"]), model_on(folders["llama"])
    handle, room = grown.open(), whole.open(256)
    for start in range(0, 240, 30):
        a, b = (logits(m, h, IDS[start : start + 30]) for m, h in ((grown, handle), (whole, room)))
        assert np.array_equal(a, b)
        grown.commit(handle, range(30))
        whole.commit(room, range(30))
    assert grown.cache.capacity >= whole.cache.capacity


def test_a_cache_shrinks_when_no_text_is_open(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.save_hf(folders["llama"].parent / "long", "llama", max_position_embeddings=4096)
    model = bounded(folders["llama"].parent / "long", monkeypatch, 4 * 1024)
    deep = model.open(3900)
    assert (model.cache.slots, model.cache.capacity) == (1, 4096)
    with pytest.raises(ContextFull):
        model.open()
    model.close(deep)
    assert size_after(model, [20] * 8) == 8 * 512 * 512  # bytes: there is room for them again
    assert size_after(model, [20] * 4) == 8 * 512 * 512
    kept = model.open()
    logits(model, kept, IDS[:30], "last")
    model.commit(kept, range(30))
    want = logits(model, kept, [3, 4])
    assert size_after(model, [300, 300]) == 8 * 512 * 512
    assert np.array_equal(logits(model, kept, [3, 4]), want)
    model.close(kept)
    assert (model.cache.slots, model.cache.capacity) == (3, 512)
    again = model.open()
    logits(model, again, IDS[:30], "last")
    model.commit(again, range(30))
    assert np.array_equal(logits(model, again, [3, 4]), want)
    model.close(again)
    assert model.cache.slots == 1


def test_a_cache_that_graphs_hold_does_not_shrink(folders: dict[str, Path]) -> None:
    tiny_models.save_hf(folders["llama"].parent / "long", "llama", max_position_embeddings=4096)
    model = model_on(folders["llama"].parent / "long", "gaudi-emulated")
    large = size_after(model, [2000] * 4)
    assert size_after(model, [20]) == size_after(model, [20]) == large


def size_after(model: SlotModel, lengths: Sequence[int]) -> int:
    """Return the bytes of the cache after texts of these lengths were open together."""
    handles = [model.open(length) for length in lengths]
    for handle in handles:
        model.close(handle)
    assert len(model.cache.keys[0]) == model.cache.slots
    return sum(tensor.nbytes for tensor in (*model.cache.keys, *model.cache.values))


def test_limits_are_said_before_anything_changes(llama: SlotModel) -> None:
    handle = llama.open()
    logits(llama, handle, IDS[:200], "last")
    llama.commit(handle, range(200))
    output = llama.step([Row(handle, Block.chain(range(3, 60)))])
    assert output.refused == {0: "context"} and output.logits.shape == (0, llama.vocab_size)
    assert handle.length == 200 and not len(handle.pending)
    with pytest.raises(ValueError, match="truncate"):
        llama.truncate(handle, 201)
    llama.step([Row(handle, Block.chain([3, 4]))])
    for nodes in ([1, 0], [0, 0], [2], [-1]):
        with pytest.raises(ValueError, match="ascending"):
            llama.commit(handle, nodes)
    with pytest.raises(ValueError, match="at least one token"):
        llama.step([Row(handle, Block.chain([]))])
    with pytest.raises(ValueError, match="conditioning"):
        llama.open(0, object())
    with pytest.raises(ContextFull, match="context of 256"):
        llama.open(257)
    llama.close(handle)


def test_trees_where_they_would_not_be_exact_are_refused(llama: SlotModel) -> None:
    assert not llama.capabilities.tree
    handle = llama.open()
    with pytest.raises(ValueError, match="6 tokens that are no chain; this model steps chains only"):
        llama.step([Row(handle, TREE)])
    llama.close(handle)


def test_memory_is_asked_for_before_it_is_taken(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices.memory, "free_bytes", lambda: 100_000)
    model = model_on(folders["llama"], exact=False)
    with pytest.raises(ContextFull, match=r"it may take 0\.0 GB"):
        model.open()
    assert model.cache.slots == 0 and model.room() == 0


def bounded(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int, **options: Any) -> SlotModel:
    """Return a model whose cache may have so many rows in all; each takes 512 bytes."""
    monkeypatch.setattr(devices.memory, "free_bytes", lambda: 512 * rows)
    return model_on(folder, exact=False, **options)


def test_only_rows_without_room_are_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.save_hf(folders["llama"].parent / "long", "llama", max_position_embeddings=4096)
    model = bounded(folders["llama"].parent / "long", monkeypatch, 2 * 1024)
    assert model.cache.shape.nbytes(1, 1) == 512
    assert model.room() == 2048 - 128  # one slot, but for the rows behind its end
    handles = [model.open(), model.open()]
    assert model.cache.slots == 2 and model.room() == 512 - 128  # two more at the present size
    assert [model.room(handle) for handle in handles] == [1024 - 128] * 2
    logits(model, handles[0], IDS[:100], "last")
    rows = [
        Row(handles[0], Block.chain([3, 4])),
        Row(handles[1], Block.chain([5] * 1000)),
        Row(handles[0], Block.chain([5] * 5000)),
    ]
    output = model.step(rows[:2])
    assert output.refused == {1: "cache"} and output.offsets == (0, 2, 2) and model.cache.capacity == 512
    assert not len(handles[1].pending) and len(handles[0].pending) == 2
    want = to_host(output.logits).copy()
    assert np.array_equal(to_host(model.step(rows[:1]).logits), want)
    output = model.step([rows[2], rows[1]])
    assert output.refused == {0: "context", 1: "cache"} and len(handles[0].pending) == 2
    fitting = Row(handles[1], Block.chain([5] * 800), "last")
    output = model.step([rows[0], fitting])  # grows to the whole budget
    assert not output.refused and model.cache.capacity == 1024 and output.offsets == (0, 2, 3)
    model.commit(handles[1], range(800))
    assert model.room() == 0
    with pytest.raises(ContextFull, match="key/value cache"):
        model.open()
    with pytest.raises(ContextFull, match="key/value cache"):
        model.fork(handles[1], 1)
    assert model.room(handles[1]) == 96
    assert model.step([Row(handles[1], Block.chain([5] * 97))]).refused == {0: "cache"}
    assert not model.step([Row(handles[1], Block.chain([5] * 96), "none")]).refused


def test_the_largest_growth_that_memory_permits_is_made(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.save_hf(folders["llama"].parent / "long", "llama", max_position_embeddings=4096)
    model = bounded(folders["llama"].parent / "long", monkeypatch, 4 * 1536)
    handles = [model.open() for _ in range(3)]
    assert model.cache.slots == 4  # doubled, as long as there is memory
    rows = [Row(h, Block.chain([5] * n), "last") for h, n in zip(handles, (3000, 950, 3), strict=True)]
    output = model.step(rows)
    assert output.refused == {0: "cache"} and output.offsets == (0, 0, 1, 2)
    assert model.cache.capacity == 1536  # not a power of two, of which there is no room


def test_a_fork_goes_on_by_itself(llama: SlotModel) -> None:
    origin = llama.open()
    logits(llama, origin, IDS[:120], "last")
    llama.commit(origin, range(120))
    forks = [llama.fork(origin, length) for length in (120, 100, 0)]
    assert [fork.length for fork in forks] == [120, 100, 0]
    llama.truncate(origin, 60)
    logits(llama, origin, IDS[200:230], "last")
    llama.commit(origin, range(30))
    for fork in forks:
        start, alone = fork.length, llama.open()
        if start:
            logits(llama, alone, IDS[:start], "last")
            llama.commit(alone, range(start))
        assert np.array_equal(logits(llama, fork, [7, 8, 9]), logits(llama, alone, [7, 8, 9]))
        llama.close(alone)
        llama.close(fork)
    for length in (-1, 91):
        with pytest.raises(ValueError, match="cannot fork"):
            llama.fork(origin, length)
    llama.close(origin)


@pytest.mark.parametrize("device", DEVICES)
def test_tokens_see_what_the_block_says(device: str, folders: dict[str, Path]) -> None:
    """A block in which all tokens see one another, as transformers computes it with such a mask."""
    model = model_on(folders["llama"], device, exact=False, hidden_layers=(1,))
    assert model.capabilities.visibility == "any"
    past, n = 30, 6
    seen = np.tri(past + n, dtype=np.bool_)
    seen[past:, past:] = True
    mask = torch.where(torch.from_numpy(seen), 0.0, -torch.inf)[None, None]
    with torch.no_grad():
        want = tiny_models.hf_model("llama")(torch.tensor([IDS[: past + n]]), attention_mask=mask).logits[0]
    handle = model.open()
    logits(model, handle, IDS[:past], "none")
    model.commit(handle, range(past))
    block = Block(tuple(IDS[past : past + n]), tuple(range(n)), np.ones((n, n), dtype=np.bool_))
    output = model.step([Row(handle, block)])
    assert block.parents() is None and abs(to_host(output.logits) - want[past:].numpy()).max() < FAR
    with pytest.raises(ValueError, match="steps 64 at most"):
        model.step([Row(handle, Block((3,) * 65, (0,) * 65))])


def test_any_tokens_of_a_block_are_kept(folders: dict[str, Path]) -> None:
    """Siblings that see only what is committed: each kept one is at the row behind the one before it."""
    model = model_on(folders["llama"], exact=False)
    assert model.capabilities.gather
    found = []
    for tokens, kept in (((5, 6, 7, 8), (1, 3)), ((6, 8), (0, 1))):
        handle = model.open()
        logits(model, handle, IDS[:30], "none")
        model.commit(handle, range(30))
        own = np.eye(len(tokens), dtype=np.bool_)
        model.step([Row(handle, Block(tokens, (0,) * len(tokens), own))])
        model.commit(handle, kept)
        assert handle.length == 32
        found.append(logits(model, handle, [9, 10]))
    assert abs(found[0] - found[1]).max() < FAR


def test_rows_ask_for_logits_each_for_itself(llama: SlotModel) -> None:
    handles = [llama.open() for _ in range(3)]
    chunks = [IDS[:5], IDS[20:100], IDS[40:47]]
    wanted: list[Any] = ["none", "last", "all"]
    rows = [Row(h, Block.chain(c), w) for h, c, w in zip(handles, chunks, wanted, strict=True)]
    output = llama.step(rows)
    assert output.offsets == (0, 0, 1, 8) and not output.hidden and output.hidden_offsets == (0, 0, 0, 0)
    found = [to_host(output.logits_of(i)).copy() for i in range(3)]
    for i in (1, 2):
        assert np.array_equal(logits(llama, handles[i], chunks[i], wanted[i]), found[i])
    output = llama.step([Row(row.handle, row.block, "none") for row in rows])
    assert output.logits.shape == (0, llama.vocab_size) and output.offsets == (0, 0, 0, 0)
    for handle in handles:
        llama.close(handle)


def test_hidden_states_are_those_of_the_layers(folders: dict[str, Path]) -> None:
    model = model_on(folders["llama"], hidden_layers=(0, 1))
    with torch.no_grad():
        body = tiny_models.hf_model("llama").model
        seen: dict[int, Any] = {}
        for i, layer in enumerate(body.layers):
            layer.register_forward_hook(lambda m, x, y, i=i: seen.update({i: y}))
        body(torch.tensor([IDS[:80]]))
    handle = model.open()
    output = model.step([Row(handle, Block.chain(IDS[:80]), hidden="all")])
    for layer in (0, 1):
        assert abs(to_host(output.hidden[layer]) - seen[layer][0].numpy()).max() < FAR
    last = model.step([Row(handle, Block.chain(IDS[:80]), "none", "last")])
    assert last.logits.shape == (0, model.vocab_size) and last.offsets == (0, 0)
    assert last.hidden_offsets == (0, 1) and last.hidden[1].shape[0] == 1
    assert abs(to_host(last.hidden[1])[0] - seen[1][0, -1].numpy()).max() < FAR
    assert not model.step([Row(handle, Block.chain(IDS[:80]))]).hidden


def test_a_row_that_is_read_in_pieces_has_what_it_asks_for(tmp_path: Path) -> None:
    tiny_models.save_hf(tmp_path, "llama", max_position_embeddings=1024)
    model = model_on(tmp_path, "gaudi-emulated", hidden_layers=(0, 1))
    handle, tokens = model.open(), Block.chain(IDS * 3)  # 256, 256 and 208 tokens
    output = model.step([Row(handle, tokens, "all", "all")])
    want = {layer: to_host(states).copy() for layer, states in output.hidden.items()}
    scores = to_host(output.logits).copy()
    assert len(scores) == len(want[0]) == len(want[1]) == 720
    kinds: list[tuple[Any, slice]] = [("none", slice(0)), ("last", slice(719, None))]
    for last, every in kinds:
        output = model.step([Row(handle, tokens, last, "all")])
        assert np.array_equal(to_host(output.logits), scores[every])
        assert all(np.array_equal(to_host(output.hidden[layer]), want[layer]) for layer in want)
        output = model.step([Row(handle, tokens, "all", last)])
        assert np.array_equal(to_host(output.logits), scores)
        for layer, states in output.hidden.items():
            assert np.array_equal(to_host(states), want[layer][every])
        assert output.hidden_offsets == ((0, 1) if last == "last" else (0, 0))
        assert {*output.hidden} == ({0, 1} if last == "last" else set())


def test_a_cut_head_gives_the_same_logits(folders: dict[str, Path]) -> None:
    keep = (3, 7, 100, 200)
    whole, cut = model_on(folders["qwen2"]), model_on(folders["qwen2"], role="draft", head_tokens=keep)
    a, b = logits(whole, whole.open(), IDS[:20]), logits(cut, cut.open(), IDS[:20])
    assert cut.vocab_size == 4 and abs(a[:, list(keep)] - b).max() < FAR
    with pytest.raises(ModelError, match="cannot be cut"):
        model_on(folders["qwen2"], role="draft", head_tokens=(3, 10_000))


def generate(model: SlotModel, drafter: Any, prompts: Sequence[Sequence[int]], depth: int) -> list[list[int]]:
    policy = FirstProposal([drafter], lambda: Fixed(depth)) if drafter else None
    group = [Generation([*prompt], SamplingParams(), 60) for prompt in prompts]
    for _ in Engine(model, policy).run(group):
        pass
    return [g.tokens[g.num_prompt_tokens :] for g in group]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_drafted_text_equals_plain_text(kind: str, device: str, folders: dict[str, Path]) -> None:
    target = model_on(folders[kind], device)
    draft = model_on(folders["llama"], device, role="draft")
    prompts = [IDS[:17], IDS[50:90]]
    plain = generate(target, None, prompts, 0)
    assert plain == [generate(target, None, [p], 0)[0] for p in prompts]
    drafter = ModelDrafter(draft, target.vocab_size)
    assert generate(target, drafter, prompts, 3) == plain
    twin = ModelDrafter(model_on(folders[kind], device, role="draft"), target.vocab_size)  # accepts most
    assert generate(target, twin, prompts, 5) == plain


def test_a_generation_compiles_no_more_graphs_than_there_are_buckets(folders: dict[str, Path]) -> None:
    target = model_on(folders["llama"], "gaudi-emulated")
    draft = model_on(folders["qwen2"], "gaudi-emulated", role="draft")
    target.open(200), draft.open(200)  # the cache has its size: growing it would start anew
    buckets = len(load_profile("gaudi-emulated").buckets)
    generate(target, ModelDrafter(draft, target.vocab_size), [IDS[:70]], 5)
    counts = [target.passes.runner.num_graphs, draft.passes.runner.num_graphs]
    assert sum(counts) <= 2 * buckets and min(counts) > 1
    generate(target, ModelDrafter(draft, target.vocab_size), [IDS[100:170]], 6)
    assert [target.passes.runner.num_graphs, draft.passes.runner.num_graphs] == counts


class _Module(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Any, extra: int = 0) -> Any:
        return self.body(x)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: bool(x[0] > 0), lambda x: int(x[0]),
        torch.nonzero, lambda x: x[x > 0], lambda x: torch.equal(x, x), lambda x: x.numpy(),
        lambda x: x[1:].index_copy_(0, torch.tensor([0]), x[:1]), lambda x: x[:2].zero_(),
    ],
)  # fmt: skip
def test_the_stand_in_fails_where_a_gaudi_would(body: Any) -> None:
    wrapped = fake_hpu.Hpu().wrap_in_hpu_graph(_Module(body))
    with pytest.raises(fake_hpu.HpuError):
        wrapped(torch.arange(4.0))


def test_the_stand_in_counts_what_a_gaudi_would_compile() -> None:
    hpu = fake_hpu.Hpu()
    wrapped = hpu.wrap_in_hpu_graph(_Module(lambda x: x + 1))
    for size, extra in ((4, 0), (4, 0), (5, 0), (4, 1), (5, 0)):
        wrapped(torch.arange(float(size)), extra)
    assert len(hpu.compiled) == 3


def test_lazy_mode_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_profile("gaudi")
    monkeypatch.setenv(devices.LAZY, "0")
    monkeypatch.setitem(sys.modules, "habana_frameworks.torch", types.ModuleType("habana_frameworks.torch"))
    with pytest.raises(DeviceError, match="lazy mode") as caught:
        devices.place(profile)
    assert f"{devices.LAZY}=1" in caught.value.hint


def test_windows_are_few_and_hold_their_slots() -> None:
    assert window([0], 1) == (0, 1) and window([5], 8) == (5, 1)
    assert window([2, 3], 8) == (2, 2) and window([1, 2], 8) == (0, 4) and window([0, 7], 8) == (0, 8)
    for total in (1, 2, 3, 4, 5, 6, 7, 8):
        for low in range(total):
            for high in range(low, total):
                first, size = window([low, high], total)
                assert 0 <= first <= low and high < first + size <= total


def test_long_rows_are_read_in_pieces_of_allowed_widths() -> None:
    widths = Widths((2, 4, 8), (2, 4, 8, 64), 2)
    assert widths.most == 8 and widths.decoded(1) == 2 and widths.decoded(5) == 8
    assert widths.pieces(130) == [(64, 64), (64, 64), (2, 2)] and widths.pieces(9) == [(9, 64)]
    free = Widths((), (), 2)
    assert free.decoded(1) == 2 and free.decoded(7) == 7 and free.pieces(300) == [(300, 300)]


def test_weights_of_the_wrong_kind_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="int4"):
        files(folders["llama"], "int4")
    (tmp_path / "openvino_model.xml").write_text("</net>")
    with pytest.raises(ModelError, match="OpenVINO IR") as caught:
        files(tmp_path)
    assert "export --to hf" in caught.value.hint
    broken = tmp_path / "broken"
    tiny_models.save_hf(broken, "llama")
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        model_on(broken)


def test_the_cli_runs_it(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from specport.cli import main

    arguments = [
        "run",
        "--model",
        str(folders["llama"]),
        "--precision",
        "fp32",
        "--max-new-tokens",
        "8",
        "hi",
    ]
    assert main([*arguments, "--device", "torch-cpu", "--json"]) == 0
    first = capsys.readouterr().out
    assert main([*arguments, "--device", "gaudi-emulated", "--json", "--draft", str(folders["llama"]),
                 "--draft-precision", "fp32", "--policy", "fixed"]) == 0  # fmt: skip
    second = capsys.readouterr()
    assert json.loads(first)["token_ids"] == json.loads(second.out)["token_ids"]
    assert "emulated" in second.out


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_a_draft_may_run_in_another_library(rule: str, folders: dict[str, Path]) -> None:
    """The target's logits are numpy's, the draft's are torch's."""
    draft = model_on(folders["llama"], role="draft")
    texts = []
    for drafter in (None, ModelDrafter(draft, 11)):
        policy = FirstProposal([drafter], lambda: Fixed(3)) if drafter else None
        params = SamplingParams(temperature=1.0, seed=3)
        generation = Generation([1, 2], params, 40, rule=rule_for(params, rule))
        for _ in Engine(ToyModel(max_context=256), policy).run([generation]):
            pass
        texts.append(generation.tokens)
        assert all(0 <= token < 11 for token in generation.tokens)
    assert all(len(text) == 42 for text in texts)


def test_a_draft_device_needs_a_draft(folders: dict[str, Path]) -> None:
    with pytest.raises(InvalidInput, match="needs a draft model"):
        specport.load(str(folders["llama"]), draft="ngram", device="torch-cpu", draft_device="torch-cpu")
    pipeline = specport.load(
        str(folders["llama"]), draft=str(folders["qwen2"]), device="gaudi-emulated", draft_device="torch-cpu",
        draft_precision="fp32",
    )  # fmt: skip
    plain = specport.load(str(folders["llama"]), draft="none", device="gaudi-emulated")
    texts = [p.generate("hello world", max_new_tokens=20).token_ids for p in (pipeline, plain)]
    assert texts[0] == texts[1]


def test_a_backend_is_found_by_its_profile() -> None:
    assert backend_for(load_profile("torch-cpu")).name == "torch"
    with pytest.raises(DeviceError, match="cannot be used"):
        backend_for(replace(load_profile("gaudi"), name="gaudi"))
