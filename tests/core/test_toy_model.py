"""The toy model keeps the model port as strictly as a real cache has to."""

from __future__ import annotations

import numpy as np
import pytest
from support.generations import PROMPT
from support.toys.toy_model import ToyCutModel, ToyExitModel, ToyHandle, ToyModel

from specport.core.block import Block
from specport.core.ports import Row
from specport.core.tree import TokenTree
from specport.errors import ContextFull


def read(model: ToyModel, tokens: list[int]) -> ToyHandle:
    handle = model.open()
    model.step([Row(handle, Block.chain(tokens), logits="none")])
    model.commit(handle, range(len(tokens)))
    return handle


def after(model: ToyModel, *tokens: int) -> np.ndarray:
    """The logits behind a text, out of the table."""
    text = [0, *tokens]
    return model.table[text[-2], text[-1]]


def test_a_tree_sees_paths_and_any_mask_what_it_says() -> None:
    model = ToyModel(any_mask=True)
    handle = read(model, [3, 1])
    tree = TokenTree((5, 6, 7, 8), (-1, 0, 0, 2))
    output = model.step([Row(handle, tree.as_block())])
    for node in range(4):
        path = [tree.tokens[i] for i in tree.path(node)]
        assert (output.logits[node] == after(model, 3, 1, *path)).all()
    visible = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1]], dtype=np.bool_)
    output = model.step([Row(handle, Block((5, 6, 7), (0, 1, 2), visible))])
    # 5 sees 7 behind it; 6 sees only what is committed; 7 sees both, 6 the later.
    expected = [model.table[7, 5], model.table[1, 6], model.table[6, 7]]
    assert (output.logits == np.stack(expected)).all()
    model.commit(handle, [0, 2])
    assert handle.tokens == [3, 1, 5, 7]


@pytest.mark.parametrize(("tree", "refused"), [(True, "trees"), (False, "chains")])
def test_blocks_beyond_the_capabilities_are_errors(tree: bool, refused: str) -> None:
    model = ToyModel(tree=tree)
    handle = read(model, PROMPT)
    fork = TokenTree((1, 2), (-1, -1)).as_block()
    every = Block((1, 2), (0, 1), np.ones((2, 2), dtype=np.bool_))
    for block in [every] if tree else [every, fork]:
        with pytest.raises(ValueError, match=refused):
            model.step([Row(handle, block)])
    assert handle.tokens == PROMPT


def test_without_gather_only_paths_are_committed() -> None:
    model = ToyModel()
    for wrong in ([1, 2], [2], [0, 3, 4], [0, 2, 3], [0, 5], [0, 0]):
        handle = read(model, [1])
        model.step([Row(handle, TokenTree((5, 6, 7, 8, 9), (-1, -1, 0, 1, 2)).as_block())])
        with pytest.raises(ValueError, match=r"no (path|ascending)"):
            model.commit(handle, wrong)
        model.commit(handle, [0, 2, 4])
        assert handle.tokens == [1, 5, 7, 9]


def test_logits_and_hidden_states_are_asked_for_apart() -> None:
    model = ToyModel(hidden_layers=(0, 2))
    handles = [model.open() for _ in range(4)]
    wanted = [("none", "all"), ("all", "none"), ("last", "last"), ("none", "none")]
    rows = [Row(h, Block.chain([4, 10]), *w) for h, w in zip(handles, wanted, strict=True)]
    output = model.step(rows)
    assert [len(output.logits_of(i)) for i in range(4)] == [0, 2, 1, 0]
    assert [len(output.hidden_of(i)[2]) for i in range(4)] == [2, 0, 1, 0]
    for layer in (0, 2):
        assert output.hidden_of(0)[layer].argmax(axis=1).tolist() == [(4 + layer) % 11, (10 + layer) % 11]
        assert output.hidden_of(2)[layer].argmax(axis=1).tolist() == [(10 + layer) % 11]
    nothing = model.step([Row(handles[0], Block.chain([1]), logits="none")])
    assert nothing.logits_of(0).shape == (0, 11) and nothing.hidden_of(0) == {}


def test_a_full_cache_refuses_rows_and_leaves_them_as_they_were() -> None:
    model = ToyModel(cache_tokens=10, max_context=8)
    first, second, third = read(model, [1, 2, 3]), read(model, [4, 5, 6]), model.open()
    assert (model.room(first), model.room(third), model.room()) == (4, 4, 4)
    chain = Block.chain([7, 8, 9])
    output = model.step([Row(first, chain), Row(second, chain), Row(third, Block.chain([7]))])
    assert output.refused == {1: "cache"}
    assert output.offsets == (0, 3, 3, 4)
    assert (second.tokens, second.pending) == ([4, 5, 6], None)
    model.commit(first, [0, 1, 2])
    model.close(third)
    assert model.num_used == 9 and model.room(second) == 1
    assert model.step([Row(first, chain)]).refused == {0: "context"}
    assert len(model.steps) == 3  # where all rows are refused nothing is run
    model.close(first)
    model.close(first)
    assert model.room() == 7 and model.num_open == 1


def test_room_that_is_reserved_is_taken() -> None:
    model = ToyModel(cache_tokens=10)
    handle = model.open(6)
    assert (model.room(), model.room(handle)) == (4, 10)
    with pytest.raises(ContextFull):
        model.open(5)
    with pytest.raises(ValueError, match="conditioning"):
        model.open(0, conditioning=object())
    assert model.num_open == 1
    model.truncate(handle, 0)
    assert model.room() == 10


def test_forks_share_what_they_have_in_common_and_see_nothing_else_of_each_other() -> None:
    model = ToyModel(cache_tokens=16)
    first = read(model, [3, 1, 4, 1])
    second = model.fork(first, 3)
    assert model.num_used == 4
    for handle, token in ((first, 5), (second, 9)):
        model.step([Row(handle, Block.chain([token, token]))])
    model.commit(second, [0, 1])
    model.commit(first, [0])
    assert (first.tokens, second.tokens) == ([3, 1, 4, 1, 5], [3, 1, 4, 9, 9])
    assert model.num_used == 7
    model.truncate(first, 1)
    assert second.tokens == [3, 1, 4, 9, 9] and model.num_used == 5
    model.close(second)
    assert first.tokens == [3] and model.num_used == 1
    for length in (-1, 2):
        with pytest.raises(ValueError, match="tokens"):
            model.fork(first, length)


def test_an_exit_drafts_behind_what_it_has_drafted_and_a_step_takes_it_over() -> None:
    model = ToyExitModel(max_context=8, cache_tokens=8)
    handle = read(model, [2, 3])
    assert (model.early_exit.draft([Row(handle, Block.chain([4]))]).logits[0] == model.early[3, 4]).all()
    output = model.early_exit.draft([Row(handle, Block.chain([5, 6]), logits="last")])
    assert (output.logits == model.early[5, 6]).all()
    assert model.early_exit.draft([Row(handle, Block.chain([1] * 4))]).refused == {0: "context"}
    other = model.open()
    assert model.early_exit.draft([Row(other, Block.chain([1] * 4))]).refused == {0: "cache"}
    model.step([Row(handle, Block.chain([4, 5, 7]))])
    assert model.taken[-1] == 2 and not model.drafted
    model.commit(handle, [0])
    assert handle.tokens == [2, 3, 4]
    model.early_exit.draft([Row(handle, Block.chain([4]))])
    model.truncate(handle, 2)
    assert not model.drafted


def test_a_cut_head_has_the_rows_of_all_ids_where_it_says_so() -> None:
    model = ToyCutModel((2, 5, 8))
    handle = read(model, [1])
    output = model.step([Row(handle, Block.chain([4]))])
    assert (output.logits[0] == model.table[1, 4, [2, 5, 8]]).all()
    assert (model.head_rows([9, 2]) @ output.head_input[0] == model.table[1, 4, [9, 2]]).all()
    assert ToyCutModel((2,), head_rows=False).head_rows is None
