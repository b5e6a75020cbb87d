"""Recurrent states: which are kept, what sequences share, what is dropped, and that nothing leaks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")

from specport.backends.openvino.paged.batch import Padding, _inputs  # noqa: E402
from specport.backends.openvino.paged.segments import Segment, cut  # noqa: E402
from specport.backends.openvino.paged.states import EMPTY, WASTE, History, Mark, StateCache  # noqa: E402


class Port:
    names = ("gated_delta_state_table.0",)

    def get_partial_shape(self) -> Any:
        return [SimpleNamespace(get_length=lambda n=n: n) for n in (0, 2, 4)]

    def get_element_type(self) -> Any:
        return ov.Type.f32


def cache(max_blocks: int, recent: int = 1) -> StateCache:
    request: Any = SimpleNamespace(compiled=SimpleNamespace(inputs=[Port()]), bind=lambda port, tensor: None)
    return StateCache(request, max_blocks, None, recent)


def read(states: StateCache, history: History, count: int) -> bool:
    """Let a sequence read so many tokens in one step and keep the state behind them."""
    blocks = states.take(1)
    if blocks:
        history.tokens += [7] * count
        states.add(history, [Mark(len(history.tokens), blocks[0])])
    return bool(blocks)


def lengths(history: History) -> list[int]:
    return [mark.length for mark in history.marks]


@pytest.mark.parametrize("recent", [1, 32])
def test_a_long_text_has_few_states_and_going_back_costs_about_what_is_cut(recent: int) -> None:
    states, history = cache(1000, recent), History()
    for end in range(1, 3000):
        assert read(states, history, 1)
        assert len(history.marks) == states.num_used <= recent + 16
        if end % 37 == 0:
            known = [0, *lengths(history)]
            for cut in range(0, end, 11):
                again = cut - max(length for length in known if length <= cut)
                assert again < max(17, end - cut)
                assert again == 0 or end - cut >= recent
    assert history.known == 2999 and history.state != EMPTY


def test_forks_share_states_until_the_last_one_goes() -> None:
    states, history = cache(100), History()
    for _ in range(3):
        read(states, history, 100)
    used = states.num_used
    fork = states.fork(history, 250)
    assert (fork.tokens, lengths(fork)) == (history.tokens[:250], [n for n in lengths(history) if n <= 250])
    assert states.num_used == used
    states.cut(history, 0)
    assert lengths(history) == [] and history.tokens == []
    assert states.num_used == len(fork.marks)
    states.cut(fork, 0)
    assert states.num_used == 0


def test_spare_states_go_first_and_the_last_of_a_sequence_never() -> None:
    states = cache(8)
    one, other = History(), History()
    for _ in range(5):
        assert read(states, one, 100)
    assert read(states, other, 10)
    assert (lengths(one), states.num_used) == ([100, 300, 400, 500], 5)
    assert states.take(5) == [] and states.num_used == 5  # one is free, three are spare
    blocks = states.take(3)
    assert len(blocks) == 3 and lengths(one) == [400, 500]
    blocks += states.take(1)
    assert (lengths(one), lengths(other)) == ([500], [10])
    assert states.take(1) == [] and not states.has_room()
    states.give_back(blocks)
    assert states.has_room() and states.num_used == 2
    assert EMPTY not in blocks and WASTE not in blocks


def test_a_shared_spare_state_frees_nothing_until_all_drop_it() -> None:
    states, history = cache(6), History()
    for _ in range(3):
        read(states, history, 100)
    fork, branch = states.fork(history, 300), states.fork(history, 100)
    assert len(states.take(1)) == 1
    assert len(states.take(1)) == 1  # the state at 100 is the branch's last
    assert lengths(history) == lengths(fork) == [300] and lengths(branch) == [100]
    assert states.take(1) == []


def test_too_small_a_cache_has_no_room() -> None:
    assert not cache(3).has_room() and cache(6).has_room()


def test_what_the_runtime_is_told() -> None:
    """Of a verify step, a prompt's step, and a padded lone token."""
    verify = Segment([3], 40, [5, 6, 7], range(3), range(40, 43), states=(9, 10, 11, 12))
    prompt = Segment([4], 0, [5] * 20, range(20), range(20), states=(EMPTY, 13))
    lone = Segment([5], 8, [5, 5], range(1), range(8, 10))
    lone.writes(14, [15], WASTE)
    inputs = _inputs([verify, prompt, lone], [], [], Padding())
    told = {name: inputs[f"la.{name}"].tolist() for name in ("block_indices", "cache_interval", "past_lens")}
    assert told == {
        "block_indices": [9, 10, 11, 12, EMPTY, 13, 14, 15, WASTE],
        "cache_interval": [1, 20, 1],
        "past_lens": [1, 0, 1],
    }
    assert inputs["la.block_indices_begins"].tolist() == [0, 4, 6, 9]
    assert inputs["la.subsequence_begins"].tolist() == [0, 3, 23, 25]
    apart = _inputs([verify, prompt, lone], [], [], Padding(apart=True))  # the padding is in attention only
    assert apart["la.subsequence_begins"].tolist() == [0, 3, 23, 24]
    assert apart["subsequence_begins"].tolist() == [0, 3, 23, 25]
    plain = Segment([3], 0, [5], range(1), range(1))
    assert "la.block_indices" not in _inputs([plain], [], [], Padding())


def test_a_wide_step_is_cut_with_its_states() -> None:
    verify = Segment([3], 40, range(8), range(8), range(40, 48), states=range(8, 17))
    assert [tuple(piece.states) for piece in cut(verify, 4)] == [(8, 9, 10, 11, 12), (12, 13, 14, 15, 16)]
    prompt = Segment([3], 40, range(9), range(9), range(40, 49), states=(2, 3))
    assert [tuple(piece.states) for piece in cut(prompt, 3)] == [(2, 3), (3, 3), (3, 3)]
    assert [piece.interval for piece in cut(prompt, 3)] == [3, 3, 3]


def test_blocks_are_never_handed_out_twice() -> None:
    """Random use by several sequences; at the end nothing is in use."""
    rng = np.random.default_rng(3)
    states = cache(40)
    histories = [History() for _ in range(6)]
    for _ in range(3000):
        history = histories[rng.integers(len(histories))]
        action = rng.integers(4)
        if action == 0 and history.tokens:
            states.cut(history, int(rng.integers(len(history.tokens))))
        elif action == 1:
            other = histories.index(history) - 1
            states.cut(histories[other], 0)
            if history.tokens:
                histories[other] = states.fork(history, int(rng.integers(len(history.tokens) + 1)))
        else:
            read(states, history, int(rng.integers(1, 60)))
        for own in histories:
            assert lengths(own) == sorted({*lengths(own)}) and own.known <= len(own.tokens)
        held = {mark.block for own in histories for mark in own.marks}
        assert states.num_used == len(held) and not held & {EMPTY, WASTE}
    for history in histories:
        states.cut(history, 0)
    assert states.num_used == 0
