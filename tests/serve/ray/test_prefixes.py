"""The beginnings of prompts, and the choice of a replica by them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from specport.serve.ray.prefixes import (
    BLOCK,
    MOST_BLOCKS,
    NAME,
    PrefixIndex,
    Recent,
    names_of,
    packed,
    ranked,
    unpacked,
)

SYSTEM = {"role": "system", "content": "You are terse. " * 40}
A, B, C = (bytes([n]) * NAME for n in range(3))


def chat(*contents: str, system: Any = SYSTEM, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return {"messages": [system, *turns], **fields}


def blocks(message: dict[str, Any]) -> int:
    return -(-len(json.dumps(message)) // BLOCK)


def common(one: dict[str, Any], other: dict[str, Any]) -> int:
    return sum(a == b for a, b in zip(names_of(one), names_of(other), strict=False))


def test_the_next_turn_begins_with_all_names_of_the_one_before() -> None:
    first = names_of(chat("Name rivers. " * 30))
    second = names_of(chat("Name rivers. " * 30, "The Rhine. " * 30, "And lakes?"))
    assert len(first) == blocks(SYSTEM) + blocks({"role": "user", "content": "Name rivers. " * 30})
    assert second[: len(first)] == first and len(second) > len(first) + 1
    short = names_of(chat("Hi", system={"role": "system", "content": ""}))
    assert names_of(chat("Hi", "Hello.", "And?", system={"role": "system", "content": ""}))[:2] == short


def test_a_system_prompt_is_shared_up_to_its_last_full_block() -> None:
    shared = common(chat("Name rivers. " * 30), chat("Something else. " * 30))
    assert shared == blocks(SYSTEM)
    other = {"role": "system", "content": "You are verbose. " * 40}
    assert common(chat("Name rivers. " * 30), chat("Name rivers. " * 30, system=other)) == 0


def test_a_longer_prompt_begins_with_the_names_of_full_blocks() -> None:
    short, long = names_of({"prompt": "a" * 300}), names_of({"prompt": "a" * 600})
    assert len(short) == 3 and short[:2] == long[:2] and len(long) == 5


def test_fields_that_are_not_read_play_no_part_and_tools_come_first() -> None:
    assert names_of(chat("a", temperature=0.5, seed=3)) == names_of(chat("a", stream=True))
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 400}}
    assert common(chat("a", tools=[tool]), chat("b" * 500, tools=[tool])) >= 3
    assert common(chat("a", tools=[tool]), chat("a")) == 0


@pytest.mark.parametrize(
    "prompt", ["word " * 100, [5] * 400, ["word " * 100, "other"], [[7] * 400, [8] * 400]]
)
def test_prompts_of_every_form_have_names(prompt: Any) -> None:
    names = names_of({"prompt": prompt})
    assert len(names) >= 3 and len({*names}) == len(names) and {len(name) for name in names} == {NAME}


@pytest.mark.parametrize("prompt", [None, 5, {}, [], "", [None], {"a": [1]}])
def test_what_the_replica_will_refuse_is_no_error_here(prompt: Any) -> None:
    assert max(len(names_of({field: prompt})) for field in ("messages", "prompt", "tools")) <= 1


def test_a_very_long_prompt_goes_by_its_beginning() -> None:
    assert len(names_of({"prompt": "x" * 10_000_000})) == MOST_BLOCKS


def test_an_index_knows_the_longest_beginning_of_each_replica() -> None:
    index = PrefixIndex()
    index.add((A, B), "one")
    index.add((A,), "two")
    assert index.matched((A, B, C)) == {"one": 2, "two": 1}
    assert index.matched((C, A)) == {}
    index.add((B, C), "two")  # a chain is only as long as it has no gap
    assert index.matched((A, B, C)) == {"one": 2, "two": 3}
    index.forget(["two"])
    assert index.matched((A, B, C)) == {"one": 2} and len(index) == 2


def test_an_index_is_bounded_and_forgets_the_end_of_the_oldest_text_first() -> None:
    index = PrefixIndex(most=3)
    index.add((A, B), "one")
    index.add((C,), "two")
    index.add((b"d" * NAME,), "two")
    assert len(index) == 3 and index.matched((A, B)) == {"one": 1}


def test_reports_hold_the_newest_names_and_survive_the_way() -> None:
    recent = Recent(3)
    recent.add((A, B))
    recent.add((C, A))
    assert [*recent] == [B, A, C]  # the least recently used first
    recent.add((b"d" * NAME,))
    assert B not in {*recent} and len([*recent]) == 3
    assert unpacked(packed([*recent])) == [*recent]


def order(matched: dict[str, int], queues: dict[str, int], full: int = 64, blocks: int = 30) -> list[str]:
    return ranked(blocks, matched, queues, full, random.Random(0))


def test_the_replica_with_the_longest_beginning_is_chosen() -> None:
    assert order({"b": 20, "c": 10}, {"a": 0, "b": 1, "c": 0})[:2] == ["b", "c"]


def test_a_long_queue_outweighs_a_beginning() -> None:
    assert order({"b": 20}, {"a": 0, "b": 4})[0] == "b"
    assert order({"b": 20}, {"a": 0, "b": 6})[0] == "a"


def test_a_full_replica_is_chosen_only_where_all_are_full() -> None:
    assert order({"b": 30}, {"a": 7, "b": 8}, full=8)[0] == "a"
    assert order({"b": 30}, {"a": 8, "b": 8}, full=8)[0] == "b"


def test_equal_replicas_take_turns_by_chance() -> None:
    draw = random.Random(0)
    chosen = [ranked(0, {}, {"a": 0, "b": 0, "c": 0}, 8, draw)[0] for _ in range(300)]
    assert all(60 < chosen.count(name) < 140 for name in "abc")
