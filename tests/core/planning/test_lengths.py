"""Whether reading a context pays over the rest of an answer whose length is not known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from specport.core.planning.lengths import Lengths

PROMPT = 800
SECOND_A_TOKEN = 2.5  # saved in a round


def row(written: int = 0, left: int = 500, *, repeatable: bool = False) -> Any:
    state = SimpleNamespace(num_prompt_tokens=PROMPT, repeatable=repeatable)
    return SimpleNamespace(
        request=SimpleNamespace(context=[0] * (PROMPT + written), num_left=left), state=state
    )


def pays(lengths: Lengths, reading: float, *given: Any, **more: Any) -> bool:
    return lengths.pays(row(*given, **more), SECOND_A_TOKEN, reading)


def test_without_a_gain_nothing_is_read_and_nothing_to_read_costs_nothing() -> None:
    lengths = Lengths()
    assert lengths.pays(row(), 0.1, 0.0) and not lengths.pays(row(), 0.0, 0.0)
    assert not lengths.pays(row(), -1.0, 0.0)


def test_it_waits_where_many_answers_end_before_it_pays() -> None:
    """The usual answers are 8, 16, ... 512 tokens, of which 500 are asked for; by hand."""
    lengths = Lengths()
    assert pays(lengths, 50.0)  # 1004 - 7 * 50 now, 948 - 6 * 50 and 900 - 5 * 50 behind the shortest
    assert not pays(lengths, 60.0)  # 584 now, 588 and 600 then
    assert pays(lengths, 60.0, 16)  # 600 now, 580 later
    assert not pays(lengths, 150.0)
    assert not pays(lengths, 50.0, 0, 60)  # no more than 60 are asked for: 296 - 350


def test_answers_count_for_prompts_of_their_length() -> None:
    for prompt, tokens, read in ((1000, 300, True), (1000, 6, False), (50, 300, False), (1700, 300, False)):
        lengths = Lengths()
        for _ in range(8):
            lengths.learn(prompt, tokens)
        assert pays(lengths, 100.0) == read, (prompt, tokens)
        assert not pays(lengths, 100.0, repeatable=True)  # a seeded text depends on no other


def test_a_text_longer_than_all_others_goes_on() -> None:
    assert pays(Lengths(), 300.0, 513) and not pays(Lengths(), 300.0, 513, 200)
