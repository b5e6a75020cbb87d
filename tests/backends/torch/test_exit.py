"""Early exit on the torch backend: what a step gives does not depend on what was drafted before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.core.arrays import to_host
from specport.core.ports import Block, Row
from specport.core.tree import TokenTree
from specport.errors import ModelError
from specport.runtime import numerics
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.backends.torch.load import load  # noqa: E402
from specport.backends.torch.runners import Eager  # noqa: E402
from specport.backends.torch.slots.early_exit import SlotEarlyExit, unread  # noqa: E402
from specport.backends.torch.slots.model import SlotModel, piece_of  # noqa: E402
from specport.backends.torch.slots.sequence import SlotSequence  # noqa: E402
from support.processes.own_cache import own_cache  # noqa: E402, F401
from support.tiny import tiny_models  # noqa: E402

KINDS = ("llama", "qwen2", "qwen3", "gemma3_text")
LAYERS, EXIT, CONTEXT = 4, 2, 1024
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 700)]
PAST = IDS[:122]
NEW = IDS[300:305]
WRONG = 2
FAR = 1e-4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny_models.save_hf(root / kind, kind, LAYERS, max_position_embeddings=CONTEXT)
    return {kind: root / kind for kind in KINDS}


def model_on(folder: Path, device: str = "torch-cpu", precision: str = "fp32", **options: Any) -> Any:
    files = resolve(str(folder), precision=precision, weights="huggingface")
    return load(files, LoadOptions(load_profile(device), **options)).model


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> SlotModel:
    model = model_on(folders["qwen2"])
    assert isinstance(model, SlotModel) and model.early_exit is None
    return model


@pytest.fixture(scope="module")
def split(folders: dict[str, Path]) -> Any:
    model = model_on(folders["qwen2"], exit_layer=EXIT)
    assert isinstance(model.early_exit, SlotEarlyExit) and model.early_exit.layer == EXIT
    assert model.capabilities.exact
    return model


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(part, tokens of each sequence) of every forward pass."""
    found: list[tuple[str, int]] = []
    real = Eager.__call__

    def noted(self: Eager, packed: Any, shape: Any) -> Any:
        found.append((shape.part, shape.new))
        return real(self, packed, shape)

    monkeypatch.setattr(Eager, "__call__", noted)
    return found


def read(model: Any, tokens: Sequence[int]) -> SlotSequence:
    handle: SlotSequence = model.open()
    model.step([Row(handle, Block.chain(tokens), logits="last")])
    model.commit(handle, range(len(tokens)))
    return handle


def step(model: Any, handle: Any, block: Block) -> Any:
    return to_host(model.step([Row(handle, block)]).logits).copy()


def chain(*tokens: int) -> Block:
    return Block.chain(tokens)


def draft(model: Any, handle: Any, *tokens: int) -> Any:
    """Draft token by token; return the logits of the last."""
    for token in tokens:
        logits = to_host(model.early_exit.draft([Row(handle, chain(token))]).logits).copy()
    return logits if tokens else None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_split_and_drafted_models_give_the_bits_of_a_whole_one(
    kind: str, precision: str, folders: dict[str, Path]
) -> None:
    whole = model_on(folders[kind], precision=precision)
    want = step(whole, handle := read(whole, PAST), chain(*NEW))
    whole.commit(handle, range(2))
    then = step(whole, handle, chain(7, 8))
    for exit_layer in range(1, LAYERS):
        model = model_on(folders[kind], precision=precision, exit_layer=exit_layer)
        assert model.capabilities.exact
        for drafted in ((), NEW[:1], NEW[:3], NEW, (*NEW, 9), (*NEW[:2], WRONG, *NEW[3:]), (WRONG,)):
            handle = read(model, PAST)
            draft(model, handle, *drafted)
            assert np.array_equal(step(model, handle, chain(*NEW)), want), (exit_layer, drafted)
            model.commit(handle, range(2))
            draft(model, handle, 7)
            assert np.array_equal(step(model, handle, chain(7, 8)), then), (exit_layer, drafted)
            model.close(handle)


# They look a layer's kind up by its place, or scale what the embedding gives.
@pytest.mark.parametrize("kind", ["exaone4", "gemma", "granite"])
def test_what_is_done_around_the_layers_stays_right(kind: str, tmp_path: Path) -> None:
    kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    own = {"layer_types": kinds, "sliding_window": 16} if kind == "exaone4" else {"pad_token_id": 0}
    tiny_models.save_hf(tmp_path, kind, LAYERS, **own)
    found = []
    for exit_layer in (0, 1, 3):
        model = model_on(tmp_path, exit_layer=exit_layer)
        handle = read(model, PAST)
        if exit_layer:
            draft(model, handle, *NEW[:2])
        found.append(step(model, handle, chain(*NEW)))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_exit_is_the_norm_and_head_on_the_first_layers(kind: str, folders: dict[str, Path]) -> None:
    shorter = tiny_models.hf_model(kind, LAYERS, max_position_embeddings=CONTEXT)
    shorter.model.layers = shorter.model.layers[:EXIT]
    shorter.config.num_hidden_layers = EXIT
    tokens = [*PAST, *NEW]
    with torch.no_grad():
        want = shorter(torch.tensor([tokens]), use_cache=False).logits[0].numpy()[len(PAST) :]
    model = model_on(folders[kind], exit_layer=EXIT)
    handle = read(model, PAST)
    for i, token in enumerate(NEW[:3]):
        assert abs(draft(model, handle, token) - want[i]).max() < FAR
    rest = model.early_exit.draft([Row(handle, chain(*NEW[3:]))])
    assert rest.offsets == (0, 2) and not rest.hidden
    assert abs(to_host(rest.logits) - want[3:]).max() < FAR
    assert handle.drafted == tuple(NEW) and handle.length == len(PAST)


def test_only_what_was_not_drafted_runs_the_first_layers(split: Any, passes: list[tuple[str, int]]) -> None:
    handle = read(split, PAST)
    passes.clear()
    draft(split, handle, *NEW)
    assert passes == [("front", 2)] * 5
    passes.clear()
    step(split, handle, chain(*NEW, 7, 8))
    assert passes == [("front", 2), ("back", 7)]
    draft(split, handle, *NEW)
    passes.clear()
    step(split, handle, chain(*NEW[:4]))
    assert passes == [("back", 4)]
    split.close(handle)


def test_weights_are_shared(split: Any) -> None:
    parts = split.passes.runner.module.parts
    front, back = parts["front"], parts["back"]
    layers = [*front.get_decoder().layers, *back.get_decoder().layers]
    assert len(front.get_decoder().layers) == EXIT and len({id(layer) for layer in layers}) == LAYERS
    assert front.get_output_embeddings() is back.get_output_embeddings()
    assert front.get_decoder().embed_tokens is back.get_decoder().embed_tokens


def test_each_row_of_a_batch_has_its_own_overlap(plain: SlotModel, split: Any) -> None:
    pasts = [PAST, IDS[200:230], IDS[400:600], IDS[20:21]]
    news = [NEW, IDS[310:312], IDS[320:330], IDS[330:333]]
    drafted = [NEW[:3], news[1], [*news[2][:4], WRONG], []]
    found = []
    for model in (plain, split):
        handles = [read(model, past) for past in pasts]
        if model is split:
            for i in range(5):
                rows = [Row(h, chain(d[i])) for h, d in zip(handles, drafted, strict=True) if i < len(d)]
                split.early_exit.draft(rows)
        rows = [Row(h, chain(*new)) for h, new in zip(handles, news, strict=True)]
        found.append(to_host(model.step(rows).logits).copy())
        for handle in handles:
            model.close(handle)
    assert np.array_equal(*found)


@pytest.mark.parametrize("device", ["torch-cpu", "gaudi-emulated"])
def test_long_prompts_and_long_drafts(device: str, folders: dict[str, Path]) -> None:
    whole = model_on(folders["qwen2"], device)
    model = model_on(folders["qwen2"], device, exit_layer=EXIT)
    tokens = IDS[:600]  # three passes of each part where shapes are fixed
    want = step(whole, read(whole, tokens), chain(*NEW))
    handle = read(model, tokens)
    draft(model, handle, *NEW[:2])
    assert np.array_equal(step(model, handle, chain(*NEW)), want)
    want = step(whole, read(whole, PAST), chain(*IDS[:300]))
    for drafted in (IDS[:290], [*IDS[:100], WRONG]):
        handle = read(model, PAST)
        logits = model.early_exit.draft([Row(handle, chain(*drafted), logits="last")]).logits
        assert logits.shape[0] == 1
        assert np.array_equal(step(model, handle, chain(*IDS[:300])), want)


def test_whatever_happens_in_between(plain: SlotModel, split: Any) -> None:
    rng = np.random.default_rng(3)
    a, b = read(plain, PAST), read(split, PAST)
    seen = 0
    for turn in range(40):
        tokens = [int(t) for t in rng.integers(3, 250, rng.integers(1, 9))]
        guess = [t if rng.random() < 0.8 else WRONG for t in tokens[: rng.integers(0, 9)]]
        start = 0
        while start < len(guess):  # in rows of one to three tokens
            stop = start + int(rng.integers(1, 4))
            split.early_exit.draft([Row(b, chain(*guess[start:stop]))])
            start = stop
        if turn % 7 == 3:
            split.truncate(b, b.length - 3)
            plain.truncate(a, a.length - 3)
            assert b.drafted == ()
        want, got = step(plain, a, chain(*tokens)), step(split, b, chain(*tokens))
        assert np.array_equal(want, got) and b.drafted == ()
        kept = int(rng.integers(0, len(tokens) + 1))
        if turn % 5 == 4:
            draft(split, b, WRONG)  # a step that is never committed
            kept = 0
        plain.commit(a, range(kept))
        split.commit(b, range(kept))
        seen += kept
    assert a.length == b.length and seen > 40
    plain.close(a)
    split.close(b)
    assert b.drafted == () and b.closed


def test_a_cache_that_grows_keeps_what_is_drafted(plain: SlotModel, folders: dict[str, Path]) -> None:
    model = model_on(folders["qwen2"], exit_layer=EXIT)
    handle = read(model, PAST)
    draft(model, handle, *NEW[:3])
    before = model.cache.capacity
    others = [model.open(900) for _ in range(2)]
    assert model.cache.capacity > before and model.cache.slots > 2 and others
    assert np.array_equal(step(model, handle, chain(*NEW)), step(plain, read(plain, PAST), chain(*NEW)))


TREES = [
    TokenTree((5, 6, 7, 8, 9), (-1, 0, 1, 1, 3)),  # a chain of two, then branches
    TokenTree((5, 6, 7, 8), (-1, 0, 0, 2)),  # branches at once
    TokenTree((5, 6, 7, 8, 9), (-1, 0, 1, 2, 1)),  # a late branch off the chain
    TokenTree((5, 6, 7), (-1, -1, 1)),
]


@pytest.mark.parametrize("tree", TREES)
def test_trees_take_over_a_chain(tree: TokenTree, folders: dict[str, Path]) -> None:
    whole = model_on(folders["llama"], exact=False)
    model = model_on(folders["llama"], exact=False, exit_layer=EXIT)
    want = step(whole, handle := read(whole, PAST), tree.as_block())
    path = tree.path(len(tree) - 1)
    whole.commit(handle, path)
    then = step(whole, handle, chain(3))
    for drafted in ((), (5,), (5, 6), (5, 6, 7, 8), (5, 9), (6,)):
        handle = read(model, PAST)
        draft(model, handle, *drafted)
        assert abs(step(model, handle, tree.as_block()) - want).max() < FAR, drafted
        model.commit(handle, path)
        draft(model, handle, 3)
        assert abs(step(model, handle, chain(3)) - then).max() < FAR, drafted


def test_what_is_taken_over_has_the_rest_below_it() -> None:
    def taken(block: Block, drafted: Sequence[int]) -> int:
        piece = piece_of(Row(SlotSequence(0, length=10), block))
        left = unread(piece, drafted)
        assert left.length + len(left.block) == 10 + len(block)
        assert [left.length + p for p in left.block.positions] == [
            10 + p for p in block.positions[len(block) - len(left.block) :]
        ]
        return left.length - 10

    assert [taken(tree.as_block(), (5, 6, 7, 8, 9)) for tree in TREES] == [2, 1, 2, 0]
    assert taken(chain(5, 6, 7), (5, 6, 7, 8)) == 3 and taken(chain(5, 6), (5, 7)) == 1
    assert taken(chain(5, 6), ()) == 0
    sees_later = np.array([[1, 0, 0], [1, 1, 1], [1, 1, 1]], dtype=np.bool_)
    assert taken(Block((5, 6, 7), (0, 1, 2), sees_later), (5, 6, 7)) == 1


def test_a_gaudi_compiles_few_graphs_for_it(folders: dict[str, Path]) -> None:
    model = model_on(folders["llama"], "gaudi-emulated", exit_layer=EXIT)
    model.open(200)
    counts = []
    for shift in (0, 40):
        handle = read(model, IDS[shift : shift + 70])
        for depth in (2, 5, 3, 7, 1, 4, 6):
            tokens = IDS[depth : depth + depth + 1]
            draft(model, handle, *tokens[: depth - depth % 2])
            step(model, handle, chain(*tokens))
            model.commit(handle, range(depth // 2 + 1))
        model.close(handle)
        counts.append(model.passes.runner.num_graphs)
    buckets = len(load_profile("gaudi-emulated").buckets)
    assert counts[0] == counts[1] <= 2 * buckets + 1


def test_the_check_of_exact_mode_drafts_too(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert numerics.is_invariant(split)
    real = SlotEarlyExit.draft

    def careless(self: Any, rows: Sequence[Row]) -> Any:
        output = real(self, rows)
        split.cache.queries[0][rows[0].handle.slot, :, rows[0].handle.length] += 1e-3
        return output

    monkeypatch.setattr(SlotEarlyExit, "draft", careless)
    assert not numerics.is_invariant(split)


def test_errors(split: Any, folders: dict[str, Path]) -> None:
    handle = read(split, IDS[:200])
    with pytest.raises(ValueError, match="only chains"):
        split.early_exit.draft([Row(handle, TokenTree((5, 6), (-1, -1)).as_block())])
    split.early_exit.draft([Row(handle, chain(*IDS[:600]), logits="last")])
    split.early_exit.draft([Row(handle, chain(*IDS[: CONTEXT - 801]), logits="last")])
    output = split.early_exit.draft([Row(handle, chain(3, 4))])
    assert output.refused == {0: "context"} and output.offsets == (0, 0)
    assert len(handle.drafted) == CONTEXT - 201  # nothing changed
    split.early_exit.draft([Row(handle, chain(3))])
    output = split.step([Row(handle, chain(*IDS[:600], *IDS[: CONTEXT - 799]))])
    assert output.refused == {0: "context"}
    assert len(handle.drafted) == CONTEXT - 200
    split.close(handle)
    for exit_layer in (-1, LAYERS, LAYERS + 3):
        with pytest.raises(ModelError, match=f"after layer {exit_layer}: the model has {LAYERS} layers") as e:
            model_on(folders["qwen2"], exit_layer=exit_layer)
        assert f"from 1 to {LAYERS - 1}" in e.value.hint


def test_hidden_states_of_later_layers(folders: dict[str, Path]) -> None:
    whole = model_on(folders["qwen2"], hidden_layers=(2, 3))
    model = model_on(folders["qwen2"], hidden_layers=(2, 3), exit_layer=2)
    outputs = []
    for one in (whole, model):
        handle = read(one, PAST)
        if one is model:
            draft(one, handle, *NEW[:2])
        outputs.append(one.step([Row(handle, chain(*NEW), "none", "all")]).hidden)
    for layer in (2, 3):
        assert torch.equal(outputs[0][layer], outputs[1][layer])
    with pytest.raises(ModelError, match="of layers from 2 on only, not of 1"):
        model_on(folders["qwen2"], hidden_layers=(1, 3), exit_layer=2)


def test_a_model_that_is_no_plain_decoder_is_refused() -> None:
    from specport.backends.torch.slots import halves as parts

    inner = torch.nn.Module()

    class Wrapped(torch.nn.Module):  # type: ignore[misc]
        def get_decoder(self) -> Any:
            return inner

    with pytest.raises(ModelError, match="Wrapped is no plain decoder"):
        parts.split(Wrapped(), None, 1, ())  # type: ignore[arg-type]
