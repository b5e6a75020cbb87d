"""User's turns with passages from the texts that come with Python."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from specport.quantize.text import passages


def test_turns_are_tasks_with_passages_of_many_lengths() -> None:
    turns = [passages.turn(np.random.default_rng(i)) for i in range(200)]
    assert turns == [passages.turn(np.random.default_rng(i)) for i in range(200)]
    assert len(set(turns)) > 190
    sizes = sorted(len(turn) for turn in turns)
    assert passages.SHORTEST // 2 < sizes[0] < 400
    assert 1500 < sizes[-1] < passages.LONGEST + 200
    starts = {task.split("{}")[0] for task in (*passages.PROSE, *passages.CODE) if not task.startswith("{}")}
    assert sum(any(turn.startswith(start) for start in starts) for turn in turns) > 100


def test_nothing_is_imported_for_it() -> None:
    before = {*sys.modules}
    passages.texts.cache_clear()
    prose, code = passages.texts()
    assert len(prose) > 500 and len(code) > 1000 and any("def " in text for text in code)
    assert not {"turtle", "cmd", "wave"} & ({*sys.modules} - before)


def test_the_text_of_a_target_depends_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = passages.content_hash()
    monkeypatch.setattr(passages, "PROSE", ("{}",))
    assert passages.content_hash() != before


def test_a_cut_ends_with_a_whole_word_or_line() -> None:
    text = "word " * 100
    assert (
        passages.shortened(text, 300, " ").endswith("word") and len(passages.shortened(text, 300, " ")) <= 300
    )
    assert passages.shortened("x" * 500, 300, " ") == "x" * (passages.SHORTEST // 2)
    assert passages.shortened(text, 1000, " ") == text
